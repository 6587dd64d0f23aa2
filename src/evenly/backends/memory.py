"""In which order and type a tensor's numbers lie in memory, and how to bring them into a wanted order."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_order(x: Tensor) -> tuple[int, ...]:
    """The axes of ``x`` from the farthest apart in memory to the nearest."""
    if x.is_contiguous():
        return tuple(range(x.ndim))
    strides = x.stride()
    return tuple(sorted(range(x.ndim), key=lambda axis: (-strides[axis], axis)))


def in_order(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """``t`` dense, with its axes in memory as ``order`` names them; copied where they are not."""
    if order == tuple(range(t.ndim)):
        return t.contiguous()
    return t.permute(order).contiguous().permute(inverse(order))


def inverse(order: tuple[int, ...]) -> list[int]:
    """The permutation that undoes ``permute(order)``."""
    return sorted(range(len(order)), key=order.__getitem__)
