"""The definition of every step, in plain differentiable torch operations.

All other backends agree with this one. It works wherever torch does: on any device, under
``torch.func``, on subclasses and on meta tensors; in float64 it is the judge.

A backend is a module with four functions (and, where it can, the fused pairs ``forward`` and
``backward``). Tensors are dense: their memory, read from first to last element, is the
partition's ``x[outer, batch, group, inner]``, whatever the order of their axes. Suffixes:
``_obgi`` that view; ``_ncs`` the view ``(positions // stride, channels, stride)`` in which
weight and bias broadcast; ``_og`` statistics, one per (outer, group); ``_c`` per channel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evenly.core.activation import Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition


class Sums(NamedTuple):
    """What step 3 finds: two sums per statistic, and the gradients of weight and bias."""

    g: Tensor  # (outer, group): sum of weight * g
    gx: Tensor  # (outer, group): sum of weight * g * xhat
    dweight: Tensor  # (channels,): sum of g * xhat
    dbias: Tensor  # (channels,): sum of g


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def moments(x: Tensor, partition: Partition, mask: Tensor | None = None, *, centered: bool = True) -> Moments:
    """Step 1: count, mean and m2 of each set; shapes ``(outer, group)``.

    Args:
        x: the input.
        partition: which elements share statistics.
        mask: weights of the positions, ``positions`` numbers in memory order (see
            `Partition.positions`), or ``numel`` of them; elements of weight 0 are not looked at.
        centered: False keeps the mean at 0 and m2 the sum of squares (RMS norm).

    Returns:
        Moments; without a mask ``count`` is a plain integer.
    """
    x_obgi = _obgi(x, partition).to(statistics_dtype(x.dtype))
    if mask is None:
        count = partition.count
        divisor = max(count, 1)
        mean_og = x_obgi.sum((1, 3)) / divisor if centered else x_obgi.new_zeros((partition.outer, partition.group))
        deviation = x_obgi - mean_og[:, None, :, None] if centered else x_obgi
        return Moments(count, mean_og, (deviation * deviation).sum((1, 3)))
    w_obgi = _mask_obgi(mask, partition).to(x_obgi.dtype)
    x_obgi = torch.where(w_obgi > 0, x_obgi, 0)
    count_og = w_obgi.sum((1, 3))
    divisor_og = torch.where(count_og > 0, count_og, 1)
    mean_og = (w_obgi * x_obgi).sum((1, 3)) / divisor_og
    if not centered:
        mean_og = torch.zeros_like(mean_og)
    deviation = x_obgi - mean_og[:, None, :, None]
    return Moments(count_og, mean_og, (w_obgi * deviation * deviation).sum((1, 3)))


def counts(mask: Tensor, partition: Partition) -> Tensor:
    """The count of each set under a mask, shape ``(outer, group)``."""
    return _mask_obgi(mask, partition).to(statistics_dtype(mask.dtype)).sum((1, 3))


def normalize(
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    *,
    zeroing: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Step 2: ``y = activation(weight * (x - mean) * rstd + bias + residual)``, in ``x``'s type.

    Args:
        x: the input.
        partition: which elements share statistics.
        mean: shape ``(outer, group)``.
        rstd: shape ``(outer, group)``.
        weight: shape ``(channels,)``.
        bias: shape ``(channels,)``.
        residual: added before the activation; of ``x``'s shape and memory order.
        activation: applied last.
        zeroing: a mask (see `moments`); the output is 0 where it is 0 (asked for by ``zero_masked``).
        keep: whether backward will follow.

    Returns:
        ``y``, and with ``keep`` what steps 3 and 4 need to find the activation's slope where it
        cannot be had from ``x`` alone, i.e. with both a residual and an activation: the residual
        itself, or, for a piecewise linear activation, one bit an element if the backend makes
        them (see `slope_of_bits`). None where nothing is needed.
    """
    xhat_obgi = (_obgi(x, partition).to(mean.dtype) - mean[:, None, :, None]) * rstd[:, None, :, None]
    z_ncs = _affine(_ncs(xhat_obgi, partition), weight, bias)
    if residual is not None:
        z_ncs = z_ncs + _ncs(_flat(residual), partition).to(z_ncs.dtype)
    y_ncs = apply_activation(z_ncs, activation)
    if zeroing is not None:
        y_ncs = torch.where(_ncs(_mask_obgi(zeroing, partition), partition) > 0, y_ncs, 0)
    saved = residual if keep and activation.name is not None else None
    return _shaped(y_ncs.to(x.dtype), x), saved


def backward_sums(
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    *,
    zeroing: Tensor | None = None,
) -> Sums:
    """Step 3: sums of ``weight * g`` and ``weight * g * xhat``, and the gradients of weight and bias.

    ``g = dy * activation'(z)``, and 0 where ``zeroing`` is 0. ``dy`` has ``x``'s memory order;
    ``saved`` is what step 2 kept. Processes that share statistics add ``g`` and ``gx`` of all
    before step 4.
    """
    g_ncs, xhat_ncs = _slope(dy, x, partition, mean, rstd, weight, bias, saved, activation, zeroing)
    gx_ncs = g_ncs * xhat_ncs
    g_obgi = _weighted(g_ncs, weight).reshape(partition.shape)
    gx_obgi = _weighted(gx_ncs, weight).reshape(partition.shape)
    return Sums(g_obgi.sum((1, 3)), gx_obgi.sum((1, 3)), gx_ncs.sum((0, 2)), g_ncs.sum((0, 2)))


def backward_input(
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    sums: Sums | None,
    count: int | Tensor,
    *,
    mask: Tensor | None = None,
    zeroing: Tensor | None = None,
    centered: bool = True,
    dresidual: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Step 4: ``dx = rstd * (weight * g - m * (sums.g + xhat * sums.gx) / count)``, and dresidual = g.

    ``m`` is the mask's weight (1 without a mask). ``sums`` is None where the statistics were
    given (evaluation, frozen): then ``dx = rstd * weight * g``. ``dresidual`` asks for g, which
    is returned in ``x``'s type (None if not asked for).
    """
    g_ncs, xhat_ncs = _slope(dy, x, partition, mean, rstd, weight, bias, saved, activation, zeroing)
    dx_obgi = _weighted(g_ncs, weight).reshape(partition.shape)
    if sums is not None:
        xhat_obgi = xhat_ncs.reshape(partition.shape)
        shared_obgi = xhat_obgi * sums.gx[:, None, :, None]
        if centered:
            shared_obgi = shared_obgi + sums.g[:, None, :, None]
        divisor = max(count, 1) if isinstance(count, int) else torch.where(count > 0, count, 1)[:, None, :, None]
        shared_obgi = shared_obgi / divisor
        if mask is not None:
            m_obgi = _mask_obgi(mask, partition).to(shared_obgi.dtype)
            shared_obgi = torch.where(m_obgi > 0, m_obgi * shared_obgi, 0)
        dx_obgi = dx_obgi - shared_obgi
    dx = _shaped((dx_obgi * rstd[:, None, :, None]).to(x.dtype), x)
    return dx, _shaped(g_ncs.to(x.dtype), x) if dresidual else None


def apply_activation(z: Tensor, activation: Activation) -> Tensor:
    """The activation itself, by torch's operators."""
    match activation.name:
        case None:
            return z
        case "leaky_relu":
            return F.leaky_relu(z, activation.arg)
        case "elu":
            return F.elu(z, activation.arg)
        case name:
            y: Tensor = getattr(F, str(name))(z)
            return y


def activation_slope(z: Tensor, activation: Activation) -> Tensor:
    """The derivative of the activation at ``z``; at a kink torch's choice (relu'(0) = 0)."""
    match activation.name:
        case None:
            return torch.ones_like(z)
        case "relu":
            return (z > 0).to(z.dtype)
        case "relu6":
            return ((z > 0) & (z < 6)).to(z.dtype)
        case "leaky_relu":
            return torch.where(z > 0, torch.ones_like(z), activation.arg)
        case "elu":
            return torch.where(z > 0, torch.ones_like(z), activation.arg * torch.exp(z.clamp(max=0)))
        case "silu":
            s = torch.sigmoid(z)
            return s * (1 + z * (1 - s))
        case _:  # gelu
            cdf = 0.5 * (1 + torch.erf(z * 0.7071067811865476))
            return cdf + z * torch.exp(-0.5 * z * z) * 0.3989422804014327


def restore(
    y: Tensor,
    partition: Partition,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """``x - mean`` from the output of an invertible activation without residual or mask.

    With mean 0 and the same ``rstd``, steps 3 and 4 then find the same ``xhat``. Weights must
    not be 0. A saturated ELU gives the input of its largest distinguishable slope.
    """
    z_ncs = _ncs(_flat(y), partition).to(rstd.dtype)
    if activation.name == "leaky_relu":
        z_ncs = torch.where(z_ncs > 0, z_ncs, z_ncs / activation.arg)
    elif activation.name == "elu":
        least = -1 + torch.finfo(z_ncs.dtype).eps
        z_ncs = torch.where(z_ncs > 0, z_ncs, torch.log1p((z_ncs / activation.arg).clamp(least, 0)))
    if bias is not None:
        z_ncs = z_ncs - bias.to(z_ncs.dtype)[:, None]
    if weight is not None:
        z_ncs = z_ncs / weight.to(z_ncs.dtype)[:, None]
    return _shaped((z_ncs.reshape(partition.shape) / rstd[:, None, :, None]).to(y.dtype), y)


def slope_of_output(y: Tensor, activation: Activation) -> Tensor:
    """The slope from the output of ReLU, ReLU6 or an invertible activation, in ``y``'s type."""
    match activation.name:
        case "relu":
            return (y > 0).to(y.dtype)
        case "relu6":
            return ((y > 0) & (y < 6)).to(y.dtype)
        case "leaky_relu":
            return torch.where(y > 0, torch.ones_like(y), activation.arg)
        case _:  # elu
            return torch.where(y > 0, torch.ones_like(y), y + activation.arg)


def slope_of_bits(bits: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """The slope of a piecewise linear activation from one bit an element, in ``x``'s shape and type.

    Bit ``k % 8`` of byte ``k // 8`` is set where element ``k``, in memory order, has slope 1.
    """
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    on = ((bits[:, None] >> shifts) & 1).reshape(-1)[: x.numel()]
    low = activation.arg if activation.name == "leaky_relu" else 0.0
    return _shaped(torch.where(on.bool(), 1.0, low).to(x.dtype), x)


def bits_of_slope(z: Tensor, activation: Activation) -> Tensor:
    """One bit an element, in memory order, set where a piecewise linear activation has slope 1."""
    on = (activation_slope(_flat(z), activation) == 1).reshape(-1)
    on = torch.nn.functional.pad(on, (0, -on.numel() % 8)).reshape(-1, 8).to(torch.uint8)
    return (on << torch.arange(8, device=z.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def memory_order(x: Tensor) -> tuple[int, ...]:
    """The axes of ``x`` from the farthest apart in memory to the nearest."""
    if x.is_contiguous():
        return tuple(range(x.ndim))
    strides = x.stride()
    return tuple(sorted(range(x.ndim), key=lambda axis: (-strides[axis], axis)))


def _flat(x: Tensor) -> Tensor:
    """``x`` with its axes in memory order."""
    order = memory_order(x)
    return x if order == tuple(range(x.ndim)) else x.permute(order)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """The elements of ``flat``, which are in memory order, with the axes of ``like``."""
    order = memory_order(like)
    if order == tuple(range(like.ndim)):
        return flat.reshape(like.shape)
    inverse = sorted(range(like.ndim), key=order.__getitem__)
    return flat.reshape([like.shape[axis] for axis in order]).permute(inverse)


def _obgi(x: Tensor, partition: Partition) -> Tensor:
    return _flat(x).reshape(partition.shape)


def _ncs(flat: Tensor, partition: Partition) -> Tensor:
    span = partition.channels * partition.stride
    return flat.reshape(partition.numel // span if span else 0, partition.channels, partition.stride)


def _mask_obgi(mask: Tensor, partition: Partition) -> Tensor:
    """The mask of every element: per position, or already per element."""
    if mask.numel() == partition.positions:
        n = partition.positions // partition.stride if partition.stride else 0
        mask = mask.reshape(n, 1, partition.stride).expand(n, partition.channels, partition.stride)
    return mask.reshape(partition.shape)


def _affine(xhat_ncs: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    z_ncs = _weighted(xhat_ncs, weight)
    return z_ncs if bias is None else z_ncs + bias.to(z_ncs.dtype)[:, None]


def _weighted(t_ncs: Tensor, weight: Tensor | None) -> Tensor:
    return t_ncs if weight is None else t_ncs * weight.to(t_ncs.dtype)[:, None]


def _slope(
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    zeroing: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``g = dy * activation'(z)`` and ``xhat``, both as ``_ncs``."""
    xhat_obgi = (_obgi(x, partition).to(mean.dtype) - mean[:, None, :, None]) * rstd[:, None, :, None]
    xhat_ncs = _ncs(xhat_obgi, partition)
    g_ncs = _ncs(_flat(dy), partition).to(mean.dtype)
    if saved is not None and saved.dtype == torch.uint8:
        g_ncs = g_ncs * _ncs(_flat(slope_of_bits(saved, x, activation)), partition).to(g_ncs.dtype)
    elif activation.name is not None:
        z_ncs = _affine(xhat_ncs, weight, bias)
        if saved is not None:
            z_ncs = z_ncs + _ncs(_flat(saved), partition).to(z_ncs.dtype)
        g_ncs = g_ncs * activation_slope(z_ncs, activation)
    if zeroing is not None:
        keep_ncs = _ncs(_mask_obgi(zeroing, partition), partition) > 0
        g_ncs = torch.where(keep_ncs, g_ncs, 0)
        xhat_ncs = torch.where(keep_ncs, xhat_ncs, 0)
    return g_ncs, xhat_ncs
