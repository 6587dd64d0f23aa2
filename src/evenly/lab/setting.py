"""How one network is built and trained: the record that experiments vary."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One way to build and train a network; an experiment varies its fields, one question at a time.

    Args:
        data: a name or file `evenly.lab.data.load` knows; ``"chosen"``: the run's ``--data``.
        network: ``"dense"``, ``"convolutional"``, ``"recurrent"``, or the user's ``MODULE:FACTORY``.
        norm: a key of `evenly.lab.networks.NORMS`.
        activation: ``"sigmoid"``, ``"tanh"`` or ``"relu"``.
        place: the norm stands ``"before"`` or ``"after"`` the activation; in a recurrent network ``"inputs"``
            takes it out of the recurrence, to the inputs of all steps at once.
        depth: hidden layers.
        width: units, or channels, of each.
        bias: whether the layer before a norm has a bias.
        affine: whether a batch norm learns a weight and a bias.
        init: standard deviation of the initial weights, biases then 0; None: torch's default.
        rate: learning rate of plain stochastic gradient descent.
        batch: samples per step.
        steps: of training.
        momentum: weight of the new batch in the running statistics; None: cumulative average.
        average: ``"ema"`` or ``"debiased"``.
        ghosts: parts of a batch with statistics of their own.
        masked: whether steps beyond a sequence's end are kept out of the statistics.
        fewest: steps at which fewer sequences than these are left use the running statistics in training too.
        shift: size of the random shift and scale injected after each norm.
    """

    data: str = "chosen"
    network: str = "dense"
    norm: str = "none"
    activation: str = "relu"
    place: str = "before"
    depth: int = 3
    width: int = 100
    bias: bool = True
    affine: bool = True
    init: float | None = None
    rate: float = 0.1
    batch: int = 60
    steps: int = 300
    momentum: float | None = 0.1
    average: str = "ema"
    ghosts: int = 1
    masked: bool = True
    fewest: int = 1
    shift: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON and for charts."""
        return asdict(self)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Setting:
        """The setting that `as_dict` wrote; fields of another version are refused."""
        known = {field.name for field in fields(cls)}
        if set(stored) != known:
            raise ValueError(f"a stored setting has other fields: {sorted(set(stored) ^ known)}")
        return cls(**stored)
