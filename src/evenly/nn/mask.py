"""Masks: which positions count, or how much."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_in_memory(mask: Tensor, x: Tensor, channel: int, order: tuple[int, ...]) -> Tensor:
    """The mask as weights of positions, flat, in ``x``'s memory order.

    Args:
        mask: bool (elements that count) or float (how much they count). ``mask.ndim == x.ndim``
            broadcasts to ``x``; ``mask.ndim == x.ndim - 1`` is ``x``'s shape without the channel
            axis; shape ``(N,)`` weighs samples.
        x: the input.
        channel: its channel axis.
        order: its axes in memory order.

    No gradient flows to a mask.

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
    if mask.ndim == 1 and x.ndim > 2 and mask.shape[0] == places[0]:
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
    flat = mask.detach().permute(order).reshape(-1)
    return flat if x.shape[channel] else flat[:0]  # without channels there are no positions either


def _refuse_negative(mask: Tensor) -> None:
    if torch._C._functorch.get_dynamic_layer_stack_depth() > 0:
        return  # a transform cannot look at values
    if mask.device.type != "cpu":
        torch._assert_async((mask >= 0).all(), "a mask's weights are frequencies and must not be negative.")
    elif mask.numel() and not bool((mask >= 0).all()):
        raise ValueError(
            "a mask's weights are frequencies and must not be negative or NaN, "
            f"got a least weight of {mask.min().item():g}."
        )


def lengths_to_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """A mask of shape ``(N, size)``, True at the first ``lengths[n]`` places of sample n.

    Args:
        lengths: shape ``(N,)``, integers from 0 to ``size``.
        size: length of the padded sequences; None: the longest.

    Returns:
        Bool, shape ``(N, size)``.

    Raises:
        ValueError: a length is negative or exceeds ``size``.

    Example:
        >>> lengths_to_mask(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    if lengths.ndim != 1 or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be integers of shape (N,), got {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    low, high = (int(lengths.min()), int(lengths.max())) if lengths.numel() else (0, 0)
    size = high if size is None else size
    if low < 0 or high > size:
        raise ValueError(f"lengths must lie between 0 and size={size}, got {low} to {high}.")
    return torch.arange(size, device=lengths.device) < lengths[:, None]
