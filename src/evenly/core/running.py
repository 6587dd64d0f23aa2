"""Running averages: from "batches seen, this one included" to "weight of this batch"."""

from __future__ import annotations

from collections.abc import Callable

Average = Callable[[int], float]


class Constant:
    """A weight that does not ask how many batches were seen, so that nobody need count."""

    __slots__ = ("weight",)

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, seen: int, /) -> float:
        """The weight, whatever has been seen."""
        return self.weight


def ema(momentum: float) -> Average:
    """Exponential average: every batch enters with weight ``momentum`` (PyTorch's default 0.1).

    Example:
        >>> ema(0.1)(1), ema(0.1)(1000)
        (0.1, 0.1)
    """
    return Constant(momentum)


def cumulative() -> Average:
    """Plain average: all batches count alike (PyTorch's ``momentum=None``).

    Example:
        >>> cumulative()(4)
        0.25
    """
    return lambda seen: 1.0 / seen


def debiased(momentum: float) -> Average:
    """Exponential average without the pull of its initial value (as in Adam).

    The weight is ``momentum / (1 - (1 - momentum)**seen)``: 1 for the first batch, so that the
    initial value leaves no trace, and ``momentum`` in the long run.

    Example:
        >>> debiased(0.5)(1)
        1.0
    """
    return lambda seen: momentum / (1.0 - (1.0 - momentum) ** seen) if momentum else 0.0


def average(name: str, momentum: float | None) -> Average:
    """The running average of a layer's ``average`` and ``momentum`` arguments.

    ``momentum=None`` is the cumulative average whatever ``name`` says, as in PyTorch.
    """
    if momentum is None:
        return cumulative()
    if name == "ema":
        return ema(momentum)
    if name == "debiased":
        return debiased(momentum)
    raise ValueError(f'average must be "ema" or "debiased", got {name!r}; for a cumulative average set momentum=None.')
