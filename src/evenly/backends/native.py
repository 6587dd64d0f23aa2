"""torch's own operators, for every device, type and machine without kernels of ours.

Batch norm, layer norm, group norm and RMS norm are one operator each; residual and activation follow
them. Running statistics are averaged by our rule, from what the operator measured. What torch has no
operator for (masks, ghosts, instance norm of channels last, ...) is the reference's. The precision is
that of torch's operators.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from evenly.backends import reference
from evenly.backends.activations import activation_slope, apply_activation
from evenly.backends.memory import statistics_dtype
from evenly.backends.records import Given, Gradients, Kept, Tensors, Wanted
from evenly.backends.running import Running, update
from evenly.core.activation import IDENTITY
from evenly.core.moments import Moments
from evenly.core.norm import Norm

_OPERATORS = torch.ops.aten
Affine = tuple[Tensor | None, Tensor | None]
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def serves(x: Tensor) -> bool:
    """Whether torch's operators take tensors of this type and layout."""
    return x.dtype in _TYPES and x.layout == torch.strided


def prepare(norm: Norm, x: Tensor, order: tuple[int, ...]) -> Kernel | None:
    """The kernel for inputs like ``x``, or None where torch has no operator for the norm."""
    p = norm.partition
    if p.numel == 0 or p.count == 1:
        return None
    if norm.centered and p.outer == 1 and p.group == p.channels and p.inner == p.stride:
        return BatchKernel(norm, order)
    if p.batch == 1 and p.group == 1 and p.stride == 1 and p.inner == p.channels:
        return RowsKernel(norm, order) if norm.centered or _has_rms(x.device.type) else None
    if norm.centered and p.batch == 1 and p.inner % p.stride == 0 and p.group * p.inner == p.channels * p.stride:
        return GroupKernel(norm, order)
    return None


@cache
def _has_rms(device: str) -> bool:
    """Whether torch has RMS norm as one operator there, backward too, and does not compose it as the reference does."""
    has = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", None)  # private to torch, so guarded
    names = ("aten::_fused_rms_norm", "aten::_fused_rms_norm_backward")
    return has is not None and all(hasattr(_OPERATORS, n[6:]) and has(n, device.upper()) for n in names)


class Kernel(reference.Kernel):
    """What the operators share: residual and activation after them, and their slopes before them in backward.

    Calls with a mask, and the steps between which processes talk, are the reference's. Several of the
    operators read by address what torch's own layers make contiguous before: so does this class.
    """

    name = "native"
    _takes_given = False  # whether the operator's backward is told that statistics were given

    def __init__(self, norm: Norm, order: tuple[int, ...]) -> None:
        super().__init__(norm, order)
        self._without_activation = reference.Kernel(replace(norm, activation=IDENTITY), order)

    def forward(
        self, x: Tensor, tensors: Tensors, statistics: Running | Given | None, *, keep: bool, spread: bool = False
    ) -> tuple[Tensor, Kept]:
        """The operator, then residual and activation."""
        if tensors.mask is not None:
            return self.composed_forward(x, tensors, statistics, keep=keep)
        weight, bias = self._affine_of(x, tensors)
        if isinstance(statistics, Given):
            y = self._by_given(self._view(x), weight, bias, statistics)
            kept = Kept(*self.given(x, statistics, copy=keep), self.norm.partition.count, None, False)
        else:
            y, mean, rstd, m2 = self._measured(x, weight, bias, spread=spread or statistics is not None)
            kept = Kept(mean, rstd, self.norm.partition.count, None, True, m2)
            if statistics is not None:
                update(statistics, Moments(kept.count, mean, m2))
        y = self._shaped(y, x)
        if tensors.residual is not None:
            y = y + tensors.residual
        slope = tensors.residual if keep and self.norm.activation.name is not None else None
        return apply_activation(y, self.norm.activation), kept._replace(slope=slope)

    def backward(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, wanted: Wanted) -> Gradients:
        """The activation's slope, then the operator's backward."""
        if tensors.mask is not None or not (kept.measured or self._takes_given):
            return self.composed_backward(dy, x, tensors, kept, wanted)
        affine = self._affine_of(x, tensors)
        if self.norm.activation.name is not None:
            before = tensors._replace(residual=kept.slope)
            z, _ = self._without_activation.normalize(x, before, kept.mean, kept.rstd, keep=False)
            dy = dy * activation_slope(z, self.norm.activation)
        kept = kept._replace(mean=kept.mean.contiguous(), rstd=kept.rstd.contiguous())
        dx, dweight, dbias = self._gradients(self._view(dy), self._view(x), affine, kept, wanted)
        dx = None if dx is None or not wanted.dx else self._shaped(dx, x)
        return Gradients(dx, dweight, dbias, dy if wanted.dresidual else None)

    def _affine_of(self, x: Tensor, tensors: Tensors) -> Affine:
        """Weight and bias as the operator takes them, detached from any graph."""
        dtype = self._affine_dtype(x)
        weight, bias = (None if t is None else t.detach().to(dtype).contiguous() for t in tensors[:2])
        # Backward wants a weight beside a bias; layer norm tells by it that its statistics are float32.
        if weight is None and (bias is not None or self._wants_weight(x)):
            weight = x.new_ones(self.norm.partition.channels, dtype=dtype)
        return weight, bias

    def _affine_dtype(self, x: Tensor) -> torch.dtype:
        return statistics_dtype(x.dtype)

    def _wants_weight(self, x: Tensor) -> bool:
        return False

    def _view(self, x: Tensor) -> Tensor:
        """The tensor as the operator takes it: contiguous, in memory order."""
        return self._flat(x).reshape(self._shape).contiguous()

    @property
    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _by_given(self, view: Tensor, weight: Tensor | None, bias: Tensor | None, given: Given) -> Tensor:
        """The output by given statistics of the channels, before residual and activation."""
        raise NotImplementedError

    def _measured(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, spread: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Output (before residual and activation), mean, rstd and, if ``spread``, m2."""
        raise NotImplementedError

    def _gradients(
        self, dy: Tensor, x: Tensor, affine: Affine, kept: Kept, wanted: Wanted
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias; both tensors come as views."""
        raise NotImplementedError


class BatchKernel(Kernel):
    """Batch norm: a channel's statistics over everything else."""

    _takes_given = True

    @property
    def _shape(self) -> tuple[int, ...]:
        p = self.norm.partition
        return (p.batch, p.group, p.inner)

    def _by_given(self, view: Tensor, weight: Tensor | None, bias: Tensor | None, given: Given) -> Tensor:
        dtype = self._affine_dtype(view)
        mean, var = given.mean.to(dtype), given.var.to(dtype)
        y: Tensor = _OPERATORS.native_batch_norm(view, weight, bias, mean, var, False, 0.0, self.norm.eps)[0]
        return y

    def _measured(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, spread: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The variance comes from buffers of momentum 1: from rstd it would have lost what eps covers."""
        view, p = self._view(x), self.norm.partition
        buffers = [view.new_zeros(p.group, dtype=self._affine_dtype(x)) for _ in range(2)] if spread else [None, None]
        y, mean, rstd = _OPERATORS.native_batch_norm(view, weight, bias, *buffers, True, 1.0, self.norm.eps)
        m2 = None if buffers[1] is None else (buffers[1] * (p.count - 1)).unsqueeze(0)
        return y, mean.unsqueeze(0), rstd.unsqueeze(0), m2

    def _gradients(
        self, dy: Tensor, x: Tensor, affine: Affine, kept: Kept, wanted: Wanted
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        mean, rstd = kept.mean.reshape(-1), kept.rstd.reshape(-1)
        var = rstd**-2 - self.norm.eps  # to which the operator adds eps again
        asked = [wanted.dx, wanted.affine, wanted.affine]
        dx, dweight, dbias = _OPERATORS.native_batch_norm_backward(
            dy, x, affine[0], mean, var, mean, rstd, kept.measured, self.norm.eps, asked
        )
        return dx, dweight, dbias


class GroupKernel(Kernel):
    """Group norm, channels first: statistics of each sample and group of channels."""

    @property
    def _shape(self) -> tuple[int, ...]:
        p = self.norm.partition
        return (p.outer, p.channels, p.stride)

    def _measured(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, spread: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        view, group = self._view(x), self.norm.partition.group
        y, mean, rstd = _OPERATORS.native_group_norm(view, weight, bias, *self._shape, group, self.norm.eps)
        dtype = statistics_dtype(x.dtype)
        return y, mean.to(dtype), rstd.to(dtype), self.moments(x).m2 if spread else None

    def _gradients(
        self, dy: Tensor, x: Tensor, affine: Affine, kept: Kept, wanted: Wanted
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        asked = [wanted.dx, wanted.affine, wanted.affine]
        dx, dweight, dbias = _OPERATORS.native_group_norm_backward(
            dy, x, kept.mean, kept.rstd, affine[0], *self._shape, self.norm.partition.group, asked
        )
        return dx, dweight, dbias


class RowsKernel(Kernel):
    """Layer norm and RMS norm: statistics of each row."""

    def forward(
        self, x: Tensor, tensors: Tensors, statistics: Running | Given | None, *, keep: bool, spread: bool = False
    ) -> tuple[Tensor, Kept]:
        """As any norm's; RMS norm's operator has no bias, so with one the reference does it."""
        if not self.norm.centered and tensors.bias is not None:
            return self.composed_forward(x, tensors, statistics, keep=keep)
        return super().forward(x, tensors, statistics, keep=keep, spread=spread)

    def backward(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, wanted: Wanted) -> Gradients:
        """As any norm's; with a bias RMS norm is the reference's."""
        if not self.norm.centered and tensors.bias is not None:
            return self.composed_backward(dy, x, tensors, kept, wanted)
        return super().backward(dy, x, tensors, kept, wanted)

    @property
    def _shape(self) -> tuple[int, ...]:
        p = self.norm.partition
        return (p.outer, p.inner)

    def _wants_weight(self, x: Tensor) -> bool:
        return self._affine_dtype(x) != x.dtype

    def _affine_dtype(self, x: Tensor) -> torch.dtype:
        """Beside float32 weights the CPU's layer norm keeps float32 statistics; other devices keep them anyhow."""
        return statistics_dtype(x.dtype) if self.norm.centered and x.is_cpu else x.dtype

    def _measured(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, spread: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        view, width, eps = self._view(x), [self.norm.partition.inner], self.norm.eps
        dtype = statistics_dtype(x.dtype)
        if self.norm.centered:
            y, mean, rstd = _OPERATORS.native_layer_norm(view, width, weight, bias, eps)
            mean = mean.to(dtype)
        else:
            y, rstd = _OPERATORS._fused_rms_norm(view, width, weight, eps)
            mean = torch.zeros_like(rstd, dtype=dtype)
        return y, mean, rstd.to(dtype), self.moments(x).m2 if spread else None

    def _gradients(
        self, dy: Tensor, x: Tensor, affine: Affine, kept: Kept, wanted: Wanted
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        width = [self.norm.partition.inner]
        if not self.norm.centered:
            asked = [wanted.dx, wanted.affine]
            dx, dweight = _OPERATORS._fused_rms_norm_backward(dy, x, width, kept.rstd, affine[0], asked)
            return dx, dweight, None
        asked = [wanted.dx, *(wanted.affine and t is not None for t in affine)]
        dx, dweight, dbias = _OPERATORS.native_layer_norm_backward(dy, x, width, kept.mean, kept.rstd, *affine, asked)
        return dx, dweight, dbias
