"""How a tensor lies in memory, and a mask beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evenly.backends.reference import memory_order


class Layout(NamedTuple):
    """A dense tensor read in memory order.

    Args:
        x: the tensor, dense: itself, or a contiguous copy.
        shape: its shape in memory order.
        channel: where its channel axis comes in memory order.
        order: its axes in memory order.
    """

    x: Tensor
    shape: tuple[int, ...]
    channel: int
    order: tuple[int, ...]


def layout(x: Tensor, channel: int, *, samples_first: bool = False) -> Layout:
    """How ``x`` lies in memory; copied only where it is not dense in some axis order.

    Args:
        x: the input.
        channel: its channel axis.
        samples_first: whether axis 0 must come first in memory (statistics belong to samples).
    """
    natural = tuple(range(x.ndim))
    if x.is_contiguous():
        return Layout(x, tuple(x.shape), channel, natural)
    # Where an axis of one element stands in memory is nobody's business: put it where it helps.
    order = memory_order(x)
    for axis, place in ((channel, 1), (0, 0)):
        if x.shape[axis] == 1:
            rest = [a for a in order if a != axis]
            order = (*rest[:place], axis, *rest[place:])
    if x.permute(order).is_contiguous() and (order[0] == 0 or not samples_first):
        return Layout(x, tuple(x.shape[a] for a in order), order.index(channel), order)
    return Layout(x.contiguous(), tuple(x.shape), channel, natural)


def mask_in_memory(mask: Tensor, x: Tensor, channel: int, order: tuple[int, ...]) -> Tensor:
    """The mask as weights of positions, flat, in ``x``'s memory order.

    Args:
        mask: bool (elements that count) or float (how much they count). ``mask.ndim == x.ndim``
            broadcasts to ``x``; ``mask.ndim == x.ndim - 1`` is ``x``'s shape without the channel
            axis; shape ``(N,)`` weighs samples.
        x: the input.
        channel: its channel axis.
        order: its axes in memory order.

    Returns:
        ``numel / channels`` weights (``numel`` where the mask differs between channels).

    Raises:
        TypeError: the mask is neither bool nor float.
        ValueError: its shape does not fit, or a weight is negative.
    """
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(
            f"a mask is bool (what counts) or float (how much it counts), got {mask.dtype}; use mask.bool()."
        )
    places = [size for axis, size in enumerate(x.shape) if axis != channel]
    if mask.ndim == 1 and x.ndim > 2 and mask.shape[0] == x.shape[0]:
        mask = mask.reshape(-1, *(1 for _ in places[1:]))
    if mask.ndim == x.ndim - 1:
        mask = mask.unsqueeze(channel)
    full = mask.ndim == x.ndim and mask.shape[channel] != 1
    target = list(x.shape) if full else [1 if axis == channel else size for axis, size in enumerate(x.shape)]
    try:
        if mask.ndim != x.ndim:
            raise RuntimeError
        mask = mask.expand(target)
    except RuntimeError:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not fit input of shape {tuple(x.shape)} with channels on axis "
            f"{channel}; give {tuple(places)} (without the channel axis), ({x.shape[0]},) for samples, "
            "or a shape that broadcasts to the input."
        ) from None
    if mask.dtype != torch.bool and not torch.compiler.is_compiling() and not mask.is_meta:
        _refuse_negative(mask)
    return mask.permute(order).reshape(-1)


def _refuse_negative(mask: Tensor) -> None:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return  # a transform cannot look at values
    if mask.device.type != "cpu":
        torch._assert_async((mask >= 0).all(), "a mask's weights are frequencies and must not be negative.")
    elif mask.numel() and not bool((mask >= 0).all()):
        raise ValueError(
            f"a mask's weights are frequencies and must not be negative or NaN, got a least weight of {mask.min().item():g}."
        )
