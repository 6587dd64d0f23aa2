"""The compiled graph's path: two functional operators, and the statistics written beside them.

torch refuses autograd on an operator that changes a buffer, so the operator returns the
batch's statistics, and torch operations in the graph enter them. Whether a compiled forward
runs as activation checkpointing's second one is known only when it runs: an operator tells,
and its answer gates the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evenly.backends import reference
from evenly.backends.activations import bits_of_slope
from evenly.backends.kernel import Kernel
from evenly.backends.memory import in_order, statistics_dtype
from evenly.backends.records import Given, Kept, Tensors, Wanted
from evenly.backends.running import Running
from evenly.core.activation import Activation, activation_name
from evenly.core.moments import Moments
from evenly.core.norm import Norm
from evenly.core.partition import Partition
from evenly.nn.call import Call
from evenly.nn.enter import enter
from evenly.nn.plan import prepared


def normalize(x: Tensor, tensors: Tensors, call: Call) -> Tensor:
    """What `evenly.nn.path.normalize` does, in operators a graph can hold."""
    norm, order = call.plan.norm, call.plan.order
    p, statistics = norm.partition, call.statistics
    mean = rstd = None
    if isinstance(statistics, Given):
        mean, rstd = reference.Kernel(norm, order).given(x, statistics, copy=torch.is_grad_enabled())
    y, mean, rstd, m2, _ = torch.ops.evenly.normalize(
        x, *tensors, mean, rstd,
        [p.outer, p.batch, p.group, p.inner, p.channels, p.stride], list(order), norm.eps,
        norm.activation.name or "", norm.activation.arg, norm.centered, norm.zero_masked, torch.is_grad_enabled(),
    )  # fmt: skip
    if isinstance(statistics, Running):
        count = p.count if tensors.mask is None else reference.counts(tensors.mask, p)
        enter(statistics, Moments(count, mean.detach(), m2.detach()))
    result: Tensor = y
    return result


@torch.library.custom_op("evenly::normalize", mutates_args=())
def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    partition: Sequence[int],
    order: Sequence[int],
    eps: float,
    activation: str,
    argument: float,
    centered: bool,
    zero_masked: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(y, mean, rstd, m2, bits)``; what was given, or is not needed, is returned empty."""
    norm = _norm_of(partition, eps, activation, argument, centered, zero_masked)
    kernel = _kernel(norm, x, order)
    tensors, none = Tensors(weight, bias, residual, mask), x.new_empty(0, dtype=statistics_dtype(x.dtype))
    if mean is not None and rstd is not None:
        y, slope = kernel.normalize(x, tensors, mean, rstd, keep=keep)
        kept = Kept(mean, rstd, norm.partition.count, slope, False)
        statistics = (none, none.clone(), none.clone())
    else:
        y, kept = kernel.forward(x, tensors, None, keep=keep, spread=True)
        assert kept.m2 is not None
        statistics = (kept.mean, kept.rstd, kept.m2)
    bits = x.new_empty(0, dtype=torch.uint8)
    if _keeps_bits(residual, norm.activation, keep):
        bits = (
            kept.slope
            if kept.slope is not None and kept.slope.dtype == torch.uint8
            else _bits(x, tensors, kept, norm, order)
        )
    return _fresh(y, x), *statistics, bits


def _bits(x: Tensor, tensors: Tensors, kept: Kept, norm: Norm, order: Sequence[int]) -> Tensor:
    """The bits of slopes, where the backend makes none."""
    linear = reference.Kernel(Norm(norm.partition, norm.eps, centered=norm.centered), tuple(order))
    z, _ = linear.normalize(x, tensors, kept.mean, kept.rstd, keep=False)
    return bits_of_slope(z.permute(*order), norm.activation)


def _norm_of(
    partition: Sequence[int], eps: float, activation: str, argument: float, centered: bool, zero_masked: bool
) -> Norm:
    return Norm(Partition(*partition), eps, _activation(activation, argument), centered, zero_masked)


def _activation(name: str, argument: float) -> Activation:
    """An activation as operators carry it: an empty name for none."""
    return Activation(activation_name(name or None), argument)


def _kernel(norm: Norm, x: Tensor, order: Sequence[int]) -> Kernel:
    """The kernel of the backend that is chosen when the graph runs."""
    return prepared(norm, in_order(x, tuple(order)), tuple(order))


@_normalize.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    partition: Sequence[int],
    order: Sequence[int],
    eps: float,
    activation: str,
    argument: float,
    centered: bool,
    zero_masked: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = (partition[0], partition[2]) if mean is None else (0,)
    dtype = statistics_dtype(x.dtype)
    bits = -(-x.numel() // 8) if _keeps_bits(residual, _activation(activation, argument), keep) else 0
    statistics = [x.new_empty(shape, dtype=dtype) for _ in range(3)]
    return torch.empty_like(x), statistics[0], statistics[1], statistics[2], x.new_empty(bits, dtype=torch.uint8)


def _keeps_bits(residual: Tensor | None, activation: Activation, keep: bool) -> bool:
    return keep and residual is not None and activation.kind.slope == "sign"


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, mask, mean, rstd, *settings = inputs
    ctx.given = mean is not None
    _, measured_mean, measured_rstd, _, bits = output
    if not ctx.given:
        mean, rstd = measured_mean, measured_rstd
    curved = residual if settings[3] and _activation(settings[3], 0.0).kind.slope != "sign" else None
    ctx.save_for_backward(x, weight, bias, curved, mask, mean, rstd, bits)
    ctx.settings, ctx.residual = settings, residual is not None


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, curved, mask, mean, rstd, bits = ctx.saved_tensors
    partition, order, eps, activation, argument, centered, zero_masked, _ = ctx.settings
    need_x, need_w, need_b, need_r = ctx.needs_input_grad[:4]
    own_residual = need_r and (bool(activation) or (zero_masked and mask is not None))
    dx, dweight, dbias, dresidual = torch.ops.evenly.normalize_backward(
        dy, x, weight, bias, curved, bits if ctx.residual else None, mask, mean, rstd,
        partition, order, eps, activation, argument, centered, zero_masked, not ctx.given,
        need_x, need_w or need_b, own_residual,
    )  # fmt: skip
    return (
        dx if need_x else None,
        dweight.to(weight.dtype) if need_w else None,
        dbias.to(bias.dtype) if need_b else None,
        (dresidual if own_residual else dy) if need_r else None,
        *(None for _ in range(11)),
    )


_normalize.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("evenly::normalize_backward", mutates_args=())
def _normalize_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    partition: Sequence[int],
    order: Sequence[int],
    eps: float,
    activation: str,
    argument: float,
    centered: bool,
    zero_masked: bool,
    measured: bool,
    dx: bool,
    affine: bool,
    dresidual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(dx, dweight, dbias, dresidual)``; what was not asked for is returned empty."""
    norm = _norm_of(partition, eps, activation, argument, centered, zero_masked)
    slope = bits if bits is not None and bits.numel() else residual
    count = norm.partition.count if mask is None else reference.counts(mask, norm.partition)
    kept = Kept(mean, rstd, count, slope, measured)
    gradients = _kernel(norm, x, order).backward(
        dy, x, Tensors(weight, bias, None, mask), kept, Wanted(dx, affine, dresidual)
    )
    wanted = (dx, affine, affine, dresidual)
    return tuple(  # type: ignore[return-value]
        _fresh(t, x) if want and t is not None else x.new_empty(0) for t, want in zip(gradients, wanted, strict=True)
    )


def _fresh(t: Tensor, x: Tensor) -> Tensor:
    """``t`` in memory of its own: an operator must not return a view of an input."""
    if not t._is_view():
        return t
    return torch.empty_like(x).copy_(t) if t.shape == x.shape else t.clone()


@_normalize_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    partition: Sequence[int],
    order: Sequence[int],
    eps: float,
    activation: str,
    argument: float,
    centered: bool,
    zero_masked: bool,
    measured: bool,
    dx: bool,
    affine: bool,
    dresidual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    per_channel = mean.new_empty(partition[4]) if affine else x.new_empty(0)
    return (
        torch.empty_like(x) if dx else x.new_empty(0),
        per_channel,
        torch.empty_like(per_channel),
        torch.empty_like(x) if dresidual else x.new_empty(0),
    )
