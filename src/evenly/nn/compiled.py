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

from evenly import backends
from evenly.backends import composed, reference
from evenly.backends.running import Running
from evenly.core.activation import Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.nn.normalize import Call, Given, enter, forward, in_memory_order_of
from evenly.nn.recompute import recomputing


def normalize_compiled(
    x: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    given: Given | None,
    running: Running | None,
) -> Tensor:
    """What `evenly.nn.normalize.normalize` does, in operators a graph can hold."""
    if residual is not None:
        residual = in_memory_order_of(x, residual)
    p = call.partition
    mean, rstd = given if given is not None else (None, None)
    y, mean, rstd, m2, _ = torch.ops.evenly.normalize(
        x, weight, bias, residual, mask, mean, rstd,
        [p.outer, p.batch, p.group, p.inner, p.channels, p.stride], call.eps,
        call.activation.name or "", call.activation.arg, call.centered, call.zero_masked, torch.is_grad_enabled(),
    )  # fmt: skip
    if running is not None:
        enter(running, Moments(_count(mask, p), mean.detach(), m2.detach()))
    result: Tensor = y
    return result


def _count(mask: Tensor | None, partition: Partition) -> int | Tensor:
    return partition.count if mask is None else reference.counts(mask, partition)


@torch.library.custom_op("evenly::counts", mutates_args=())
def counts(anchor: Tensor) -> Tensor:
    """False while activation checkpointing recomputes (0-d bool); ``anchor`` gives the device."""
    return torch.tensor(not recomputing(), device=anchor.device)


@counts.register_fake
def _(anchor: Tensor) -> Tensor:
    return anchor.new_empty((), dtype=torch.bool)


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
    eps: float,
    activation: str,
    argument: float,
    centered: bool,
    zero_masked: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(y, mean, rstd, m2, bits)``; what was given, or is not needed, is returned empty."""
    call = Call(Partition(*partition), eps, Activation(activation or None, argument), centered, zero_masked)
    given = None if mean is None or rstd is None else Given(mean, rstd)
    y, moments, rstd_, saved = forward(x, call, weight, bias, residual, mask, given, None, keep=keep)
    bits = x.new_empty(0, dtype=torch.uint8)
    if _keeps_bits(residual, call.activation, keep):
        if saved is None or saved.dtype != torch.uint8:
            z, _ = reference.normalize(
                x, call.partition, moments.mean, rstd_, weight, bias, residual, Activation()
            )  # fmt: skip
            saved = reference.bits_of_slope(z, call.activation)
        bits = saved
    y = y if not y._is_view() else torch.empty_like(x).copy_(y)
    if mean is not None:
        return y, mean.new_empty(0), mean.new_empty(0), mean.new_empty(0), bits
    return y, moments.mean, rstd_, moments.m2, bits


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
    eps: float,
    activation: str,
    argument: float,
    centered: bool,
    zero_masked: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = (partition[0], partition[2]) if mean is None else (0,)
    dtype = reference.statistics_dtype(x.dtype)
    bits = -(-x.numel() // 8) if _keeps_bits(residual, Activation(activation or None, argument), keep) else 0
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
    curved = residual if settings[2] and Activation(settings[2]).kind.slope != "sign" else None
    ctx.save_for_backward(x, weight, bias, curved, mask, mean, rstd, bits)
    ctx.settings, ctx.residual = settings, residual is not None


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, curved, mask, mean, rstd, bits = ctx.saved_tensors
    partition, _, activation, argument, centered, zero_masked, _ = ctx.settings
    need_x, need_w, need_b, need_r = ctx.needs_input_grad[:4]
    own_residual = need_r and (bool(activation) or zero_masked)
    dx, dweight, dbias, dresidual = torch.ops.evenly.normalize_backward(
        dy, x, weight, bias, curved, bits if ctx.residual else None, mask, mean, rstd,
        partition, activation, argument, centered, zero_masked, not ctx.given,
        need_x, need_w or need_b, own_residual,
    )  # fmt: skip
    return (
        dx if need_x else None,
        dweight.to(weight.dtype) if need_w else None,
        dbias.to(bias.dtype) if need_b else None,
        (dresidual if own_residual else dy) if need_r else None,
        *(None for _ in range(10)),
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
    shared, slope = Partition(*partition), Activation(activation or None, argument)
    steps: Any = backends.choose(x)
    dy = in_memory_order_of(x, dy)
    saved = bits if bits is not None and bits.numel() else residual
    options: dict[str, Any] = {
        "mask": mask, "zeroing": mask if zero_masked else None, "centered": centered,
        "measured": measured, "dresidual": dresidual, "dx": dx, "affine": affine,
    }  # fmt: skip
    arguments = (dy, x, shared, mean, rstd, weight, bias, saved, slope, _count(mask, shared))
    if hasattr(steps, "backward"):
        gradients = steps.backward(*arguments, **options)
    else:
        gradients = composed.backward(steps, *arguments, **options)
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
