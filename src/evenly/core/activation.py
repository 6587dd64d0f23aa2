"""Activations that a norm can apply itself: names, parameters and what backward needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActivationName = Literal["relu", "relu6", "leaky_relu", "elu", "silu", "gelu"]


@dataclass(frozen=True)
class Kind:
    """What is known of an activation before it is called.

    Args:
        number: its number in the kernels (``csrc/activation.hpp``).
        parameters: names and defaults of its parameters, as torch.nn.functional has them.
        slope: what its derivative can be found from: the ``"sign"`` pattern (one bit an element
            suffices), its ``"output"``, or only its ``"input"``.
        invertible: whether the input can be had back from the output, for all legal parameters
            (leaky ReLU needs a positive slope, ELU a positive alpha: checked by `Activation`).
    """

    number: int
    parameters: tuple[tuple[str, float], ...]
    slope: Literal["none", "sign", "output", "input"]
    invertible: bool


KINDS: dict[ActivationName | None, Kind] = {
    None: Kind(0, (), "none", True),
    "relu": Kind(1, (), "sign", False),
    "relu6": Kind(2, (), "sign", False),
    "leaky_relu": Kind(3, (("negative_slope", 0.01),), "sign", True),
    "elu": Kind(4, (("alpha", 1.0),), "output", True),
    "silu": Kind(5, (), "input", False),
    "gelu": Kind(6, (), "input", False),
}


def activation_name(name: str | None) -> ActivationName | None:
    """``name``, if it is one of ours.

    Raises:
        ValueError: it is not.
    """
    for known in KINDS:
        if known == name:
            return known
    listed = ", ".join(f'"{k}"' for k in KINDS if k)
    raise ValueError(f"unknown activation {name!r}; known are None, {listed}.")


@dataclass(frozen=True)
class Activation:
    """An activation and its parameter, checked.

    Args:
        name: ``None``, ``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"elu"``, ``"silu"`` or ``"gelu"``.
        arg: the parameter of ``"leaky_relu"`` (negative slope) or ``"elu"`` (alpha), else 0.

    Raises:
        ValueError: the name is unknown, or there are more arguments than the activation takes.

    Example:
        >>> Activation.of("leaky_relu", (0.2,))
        Activation(name='leaky_relu', arg=0.2)
    """

    name: ActivationName | None = None
    arg: float = 0.0

    @classmethod
    def of(cls, name: str | None, args: tuple[float, ...] = ()) -> Activation:
        """The activation called ``name`` with ``args``, missing ones at torch's defaults."""
        known = activation_name(name)
        parameters = KINDS[known].parameters
        args = tuple(args)
        if len(args) > len(parameters):
            takes = ", ".join(f"{p}={d}" for p, d in parameters) or "no parameter"
            raise ValueError(f"activation {name!r} takes {takes}, got activation_args={args}.")
        values = args + tuple(default for _, default in parameters[len(args) :])
        return cls(known, float(values[0]) if values else 0.0)

    @property
    def kind(self) -> Kind:
        """What is known of this activation."""
        return KINDS[self.name]

    @property
    def curved(self) -> bool:
        """Whether its slope is not constant between kinks, so that it has a slope of its own."""
        return self.kind.slope in ("output", "input")

    @property
    def invertible(self) -> bool:
        """Whether its input can be had back from its output."""
        return self.kind.invertible and (not self.kind.parameters or self.arg > 0)


IDENTITY = Activation()
