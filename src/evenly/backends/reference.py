"""The definition of every step, in plain differentiable torch operations.

All other backends agree with this one. It works wherever torch does: on any device, under
``torch.func``, on subclasses and on meta tensors; in float64 it is the judge.

Suffixes: ``_obgi`` the partition's view ``x[outer, batch, group, inner]``; ``_ncs`` the view
``(positions // stride, channels, stride)`` in which weight and bias broadcast; ``_og`` statistics,
one per (outer, group); ``_c`` per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenly.backends import kernel
from evenly.backends.activations import activation_slope, apply_activation, invert, slope_of_bits
from evenly.backends.memory import inverse, statistics_dtype
from evenly.backends.records import Kept, Sums, Tensors
from evenly.core.moments import Moments
from evenly.core.norm import Norm
from evenly.core.partition import Partition


def serves(x: Tensor) -> bool:
    """Whether there are kernels for tensors like ``x``: always."""
    return True


class Kernel(kernel.Kernel):
    """The formulas themselves; see `evenly.backends.kernel.Kernel` for the steps."""

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Step 1."""
        p, centered = self.norm.partition, self.norm.centered
        x_obgi = self._obgi(x).to(statistics_dtype(x.dtype))
        if mask is None:
            count = p.count
            divisor = max(count, 1)
            mean_og = x_obgi.sum((1, 3)) / divisor if centered else x_obgi.new_zeros((p.outer, p.group))
            deviation = x_obgi - mean_og[:, None, :, None] if centered else x_obgi
            return Moments(count, mean_og, (deviation * deviation).sum((1, 3)))
        w_obgi = _mask_obgi(mask, p).to(x_obgi.dtype)
        x_obgi = torch.where(w_obgi > 0, x_obgi, 0)
        count_og = w_obgi.sum((1, 3))
        mean_og = (w_obgi * x_obgi).sum((1, 3)) / torch.where(count_og > 0, count_og, 1)
        if not centered:
            mean_og = torch.zeros_like(mean_og)
        deviation = x_obgi - mean_og[:, None, :, None]
        return Moments(count_og, mean_og, (w_obgi * deviation * deviation).sum((1, 3)))

    def normalize(
        self, x: Tensor, tensors: Tensors, mean: Tensor, rstd: Tensor, *, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Step 2; with both a residual and an activation, the slope needs the residual."""
        p, activation, residual = self.norm.partition, self.norm.activation, tensors.residual
        xhat_obgi = (self._obgi(x).to(mean.dtype) - mean[:, None, :, None]) * rstd[:, None, :, None]
        z_ncs = _affine(_ncs(xhat_obgi, p), tensors)
        if residual is not None:
            z_ncs = z_ncs + _ncs(self._flat(residual), p).to(z_ncs.dtype)
        y_ncs = apply_activation(z_ncs, activation)
        if self.norm.zero_masked and tensors.mask is not None:
            y_ncs = torch.where(_ncs(_mask_obgi(tensors.mask, p), p) > 0, y_ncs, 0)
        slope = residual if keep and activation.name is not None else None
        return self._shaped(y_ncs.to(x.dtype), x), slope

    def backward_sums(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept) -> Sums:
        """Step 3."""
        shape = self.norm.partition.shape
        g_ncs, xhat_ncs = self._slope(dy, x, tensors, kept)
        gx_ncs = g_ncs * xhat_ncs
        g_obgi = _weighted(g_ncs, tensors.weight).reshape(shape)
        gx_obgi = _weighted(gx_ncs, tensors.weight).reshape(shape)
        return Sums(g_obgi.sum((1, 3)), gx_obgi.sum((1, 3)), gx_ncs.sum((0, 2)), g_ncs.sum((0, 2)))

    def backward_input(
        self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, sums: Sums | None, *, dresidual: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Step 4."""
        p, count = self.norm.partition, kept.count
        g_ncs, xhat_ncs = self._slope(dy, x, tensors, kept)
        dx_obgi = _weighted(g_ncs, tensors.weight).reshape(p.shape)
        if sums is not None:
            shared_obgi = xhat_ncs.reshape(p.shape) * sums.gx[:, None, :, None]
            if self.norm.centered:
                shared_obgi = shared_obgi + sums.g[:, None, :, None]
            divisor = max(count, 1) if isinstance(count, int) else torch.where(count > 0, count, 1)[:, None, :, None]
            shared_obgi = shared_obgi / divisor
            if tensors.mask is not None:
                m_obgi = _mask_obgi(tensors.mask, p).to(shared_obgi.dtype)
                shared_obgi = torch.where(m_obgi > 0, m_obgi * shared_obgi, 0)
            dx_obgi = dx_obgi - shared_obgi
        dx = self._shaped((dx_obgi * kept.rstd[:, None, :, None]).to(x.dtype), x)
        return dx, self._shaped(g_ncs.to(x.dtype), x) if dresidual else None

    def restore(self, y: Tensor, tensors: Tensors, rstd: Tensor) -> Tensor:
        """``x - mean`` from the output of an invertible activation without residual or mask.

        With mean 0 and the same ``rstd``, steps 3 and 4 then find the same ``xhat``. Weights must
        not be 0.
        """
        p = self.norm.partition
        z_ncs = invert(_ncs(self._flat(y), p).to(rstd.dtype), self.norm.activation)
        if tensors.bias is not None:
            z_ncs = z_ncs - tensors.bias.to(z_ncs.dtype)[:, None]
        if tensors.weight is not None:
            z_ncs = z_ncs / tensors.weight.to(z_ncs.dtype)[:, None]
        return self._shaped((z_ncs.reshape(p.shape) / rstd[:, None, :, None]).to(y.dtype), y)

    def slope_in_shape(self, bits: Tensor, like: Tensor) -> Tensor:
        """The slopes that ``bits`` tell, in ``like``'s shape and type."""
        return self._shaped(slope_of_bits(bits, like.numel(), self.norm.activation, like.dtype), like)

    def _slope(self, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept) -> tuple[Tensor, Tensor]:
        """``g = dy * activation'(z)`` and ``xhat``, both as ``_ncs``."""
        p, activation, mean, slope = self.norm.partition, self.norm.activation, kept.mean, kept.slope
        xhat_obgi = (self._obgi(x).to(mean.dtype) - mean[:, None, :, None]) * kept.rstd[:, None, :, None]
        xhat_ncs = _ncs(xhat_obgi, p)
        g_ncs = _ncs(self._flat(dy), p).to(mean.dtype)
        if slope is not None and slope.dtype == torch.uint8:
            g_ncs = g_ncs * _ncs(slope_of_bits(slope, p.numel, activation, g_ncs.dtype), p)
        elif activation.name is not None:
            z_ncs = _affine(xhat_ncs, tensors)
            if slope is not None:
                z_ncs = z_ncs + _ncs(self._flat(slope), p).to(z_ncs.dtype)
            g_ncs = g_ncs * activation_slope(z_ncs, activation)
        if self.norm.zero_masked and tensors.mask is not None:
            counts_ncs = _ncs(_mask_obgi(tensors.mask, p), p) > 0
            g_ncs = torch.where(counts_ncs, g_ncs, 0)
            xhat_ncs = torch.where(counts_ncs, xhat_ncs, 0)
        return g_ncs, xhat_ncs

    def _flat(self, x: Tensor) -> Tensor:
        """``x`` with its axes in memory order."""
        return x if self.order == tuple(range(x.ndim)) else x.permute(self.order)

    def _shaped(self, flat: Tensor, like: Tensor) -> Tensor:
        """The elements of ``flat``, which are in memory order, with the axes of ``like``."""
        if self.order == tuple(range(like.ndim)):
            return flat.reshape(like.shape)
        return flat.reshape([like.shape[axis] for axis in self.order]).permute(inverse(self.order))

    def _obgi(self, x: Tensor) -> Tensor:
        return self._flat(x).reshape(self.norm.partition.shape)


def prepare(norm: Norm, x: Tensor, order: tuple[int, ...]) -> Kernel:
    """The kernel for inputs like ``x``; always one."""
    return Kernel(norm, order)


def counts(mask: Tensor, partition: Partition) -> Tensor:
    """The count of each set under a mask, shape ``(outer, group)``."""
    return _mask_obgi(mask, partition).to(statistics_dtype(mask.dtype)).sum((1, 3))


def _ncs(flat: Tensor, partition: Partition) -> Tensor:
    span = partition.channels * partition.stride
    return flat.reshape(partition.numel // span if span else 0, partition.channels, partition.stride)


def _mask_obgi(mask: Tensor, partition: Partition) -> Tensor:
    """The mask of every element: per position, or already per element."""
    if mask.numel() == partition.positions:
        n = partition.positions // partition.stride if partition.stride else 0
        mask = mask.reshape(n, 1, partition.stride).expand(n, partition.channels, partition.stride)
    return mask.reshape(partition.shape)


def _affine(xhat_ncs: Tensor, tensors: Tensors) -> Tensor:
    z_ncs = _weighted(xhat_ncs, tensors.weight)
    return z_ncs if tensors.bias is None else z_ncs + tensors.bias.to(z_ncs.dtype)[:, None]


def _weighted(t_ncs: Tensor, weight: Tensor | None) -> Tensor:
    return t_ncs if weight is None else t_ncs * weight.to(t_ncs.dtype)[:, None]
