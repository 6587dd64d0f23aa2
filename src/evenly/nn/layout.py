"""How a tensor lies in memory."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from evenly.backends.memory import memory_order


class Layout(NamedTuple):
    """A tensor read in memory order.

    Args:
        shape: its shape in memory order.
        channel: where its channel axis comes in memory order.
        order: its axes in memory order.
        dense: whether it lies so; if not, all this is said of ``x.contiguous()``.
        channel_axis: its channel axis, counted from the front.
    """

    shape: tuple[int, ...]
    channel: int
    order: tuple[int, ...]
    dense: bool
    channel_axis: int


def layout(x: Tensor, channel: int, *, samples_first: bool = False) -> Layout:
    """How ``x`` lies in memory; to be copied only where it is not dense in some axis order.

    Args:
        x: the input.
        channel: its channel axis, counted from the front.
        samples_first: whether axis 0 must come first in memory (statistics belong to samples).
    """
    natural = tuple(range(x.ndim))
    if x.is_contiguous():
        return Layout(tuple(x.shape), channel, natural, True, channel)
    # Where an axis of one element stands in memory is nobody's business: put it where it helps.
    order = memory_order(x)
    for axis, place in ((channel, 1), (0, 0)):
        if x.shape[axis] == 1:
            rest = [a for a in order if a != axis]
            order = (*rest[:place], axis, *rest[place:])
    if x.permute(order).is_contiguous() and (order[0] == 0 or not samples_first):
        return Layout(tuple(x.shape[a] for a in order), order.index(channel), order, True, channel)
    return Layout(tuple(x.shape), channel, natural, False, channel)
