"""What a norm's arguments come to: one record, made once for equal arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from evenly.backends.memory import statistics_dtype
from evenly.core.activation import IDENTITY, Activation
from evenly.nn.renorm import Renorm

Kind = Literal["batch", "instance", "group", "layer", "rms"]


@dataclass(frozen=True, eq=False)
class Settings:
    """The settings of a norm, apart from tensors; compared by identity, since equal ones are one object.

    Args:
        kind: which norm of the family.
        eps: added to the variance; None: machine epsilon of the type computed in (RMS norm).
        activation: applied last.
        channel: the channel axis; for layer and RMS norm the axis to normalise alone, None for the last ones.
        parts: ghosts of batch norm, groups of group norm.
        shape: the last axes (layer and RMS norm).
        zero_masked: whether the output is 0 where a mask is.
        single: what one value per channel means to batch norm: ``"error"``, ``"skip"`` (normalised to 0,
            not entered into the running statistics), ``"running"`` (normalised by the running statistics)
            or ``"pass"`` (as any other batch: for a part of one, and for Keras).
        renorm: correction of batch norm towards the running statistics, or None.
        inplace: whether backward may restore the input from the output.
    """

    kind: Kind
    eps: float | None
    activation: Activation = IDENTITY
    channel: int | None = 1
    parts: int = 1
    shape: tuple[int, ...] = ()
    zero_masked: bool = False
    single: str = "error"
    renorm: Renorm | None = None
    inplace: bool = False

    def eps_for(self, dtype: torch.dtype) -> float:
        """Epsilon for input of a type; where none was given, that of the type computed in."""
        return torch.finfo(statistics_dtype(dtype)).eps if self.eps is None else self.eps


def settings_of(
    kind: Kind,
    eps: float | None,
    activation: str | None = None,
    activation_args: tuple[float, ...] = (),
    *,
    channel: int | None = 1,
    parts: int = 1,
    shape: Sequence[int] = (),
    zero_masked: bool = False,
    single: str = "error",
    renorm: Renorm | None = None,
    inplace: bool = False,
) -> Settings:
    """The one `Settings` for these arguments."""
    args, shape = tuple(activation_args), tuple(shape)

    def make() -> Settings:
        made = Activation.of(activation, args)
        return Settings(kind, eps, made, channel, parts, shape, zero_masked, single, renorm, inplace)

    asked = kind, eps, activation, args, channel, parts, shape, zero_masked, single, renorm, inplace
    return known(asked, make)


def with_activation(settings: Settings, activation: Activation) -> Settings:
    """``settings`` with another activation, for one call."""
    if activation == settings.activation:
        return settings
    return known((settings, activation), lambda: replace(settings, activation=activation))


def part_of_batch(settings: Settings, ghosts: int) -> Settings:
    """Batch norm's settings for a part of the batch that ``ghosts`` divides."""
    return known((settings, ghosts), lambda: replace(settings, parts=ghosts, single="pass", renorm=None))


def known(asked: Any, make: Callable[[], Settings]) -> Settings:
    """What was made for ``asked`` before, else ``make()``."""
    if torch.compiler.is_compiling():
        return make()
    try:
        found = _KNOWN.get(asked)
    except TypeError:  # somebody's own renorm, without a hash
        return make()
    if found is None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        found = _KNOWN[asked] = make()
    return found


_MOST = 1024  # an epsilon that changes at every step leaves no more than this
_KNOWN: dict[Any, Settings] = {}
