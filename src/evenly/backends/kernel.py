"""A norm made ready for inputs that are alike: four steps, and the two passes composed of them.

| step | method | reads → writes | between the steps |
|---|---|---|---|
| 1 | `moments` | x → count, mean, m2 | processes merge theirs; the running statistics take their share |
| 2 | `normalize` | x → y | evaluation starts here |
| 3 | `backward_sums` | dy through the activation's slope → sums, dweight, dbias | processes add the two sums |
| 4 | `backward_input` | → dx, dresidual | |

A backend makes kernels. Its kernel defines the steps; `forward` and `backward` are composed of them
here, and a kernel that visits the tensor once for two steps defines them itself.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from evenly.backends.memory import statistics_dtype
from evenly.backends.records import Given, Gradients, Kept, Sums, Tensors, Wanted
from evenly.backends.running import Running, update
from evenly.core.moments import Moments
from evenly.core.norm import Norm


class Sharing(Protocol):
    """Processes that share statistics: the messages between the steps."""

    def merge(self, moments: Moments) -> Moments:
        """From this process's moments to those of all."""

    def add(self, sums: Sums) -> Sums:
        """From this process's sums to those of all."""


class Kernel:
    """A norm prepared once for inputs of one shape, layout, type and device; it does not change afterwards.

    Args:
        norm: what is constant.
        order: the input's axes in memory order; the memory of every tensor of the input's shape, read
            in this order, is the partition's ``x[outer, batch, group, inner]``.
    """

    name = "reference"
    guards = False  # whether it looks at every tensor itself, and raises UnreadableError for what torch alone can read

    def __init__(self, norm: Norm, order: tuple[int, ...]) -> None:
        self.norm, self.order = norm, order

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Step 1: count, mean and m2 of each set, shape ``(outer, group)``; without a mask count is a number."""
        raise NotImplementedError

    def normalize(
        self, x: Tensor, tensors: Tensors, mean: Tensor, rstd: Tensor, *, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Step 2: the output, and with ``keep`` what backward needs for the slope (`Kept.slope`)."""
        raise NotImplementedError

    def backward_sums(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept) -> Sums:
        """Step 3, with ``g = dy * activation'(z)``, and 0 where the mask zeroes."""
        raise NotImplementedError

    def backward_input(
        self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, sums: Sums | None, *, dresidual: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Step 4: ``dx = rstd * (weight * g - m * (sums.g + xhat * sums.gx) / count)``, and dresidual = g.

        ``m`` is the mask's weight. Without sums (given statistics) ``dx = rstd * weight * g``.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, tensors: Tensors, statistics: Running | Given | None, *, keep: bool, spread: bool = False
    ) -> tuple[Tensor, Kept]:
        """Steps 1 and 2, or step 2 by given statistics.

        Args:
            x: the input, in memory as the kernel has it.
            tensors: weight, bias, residual, mask.
            statistics: what is given, or the buffers that what is measured enters, or None.
            keep: whether backward will follow.
            spread: whether ``m2`` is asked for.
        """
        return self.composed_forward(x, tensors, statistics, keep=keep)

    def backward(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, wanted: Wanted) -> Gradients:
        """Steps 3 and 4; ``tensors`` as in forward, but for the residual, which `Kept.slope` stands for."""
        return self.composed_backward(dy, x, tensors, kept, wanted)

    def composed_forward(
        self,
        x: Tensor,
        tensors: Tensors,
        statistics: Running | Given | None,
        *,
        keep: bool,
        sharing: Sharing | None = None,
    ) -> tuple[Tensor, Kept]:
        """`forward` step by step, with messages between them where processes share statistics."""
        partition = self.norm.partition
        if isinstance(statistics, Given):
            mean, rstd = self.given(x, statistics, copy=keep)
            y, slope = self.normalize(x, tensors, mean, rstd, keep=keep)
            return y, Kept(mean, rstd, partition.count, slope, False)
        moments = self.moments(x, tensors.mask)
        if sharing is not None:
            moments = sharing.merge(moments)
        if statistics is not None:
            update(statistics, moments)
        rstd = torch.rsqrt(moments.var + self.norm.eps)
        y, slope = self.normalize(x, tensors, moments.mean, rstd, keep=keep)
        return y, Kept(moments.mean, rstd, moments.count, slope, True, moments.m2)

    def composed_backward(
        self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, wanted: Wanted, sharing: Sharing | None = None
    ) -> Gradients:
        """`backward` step by step, with messages between them where processes share statistics."""
        sums = local = None
        measured, (dx, affine, dresidual) = kept.measured, wanted
        # Processes add their sums even where this one has no use for them: another may.
        if affine or (measured and (dx or sharing is not None)):
            sums = local = self.backward_sums(dy, x, tensors, kept)
            if sharing is not None and measured:
                sums = sharing.add(local)
        dx_, dres = None, None
        if dx or dresidual:
            dx_, dres = self.backward_input(dy, x, tensors, kept, sums if measured else None, dresidual=dresidual)
        dweight, dbias = (local.dweight, local.dbias) if affine and local is not None else (None, None)
        return Gradients(dx_ if dx else None, dweight, dbias, dres)

    def given(self, x: Tensor, statistics: Given, *, copy: bool) -> tuple[Tensor, Tensor]:
        """Mean and rstd of given statistics, shape ``(1, channels)``; copied, since a batch may be entered before."""
        dtype = statistics_dtype(x.dtype)
        mean = statistics.mean.to(dtype, copy=copy)
        return mean.unsqueeze(0), torch.rsqrt(statistics.var.to(dtype) + self.norm.eps).unsqueeze(0)
