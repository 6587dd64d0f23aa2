"""Which path a call takes: from checked arguments to a backend.

Every layer and functional ends in `normalize`. It is the only place that decides between the
eager autograd function, a backend called directly, and differentiable torch operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly import backends
from evenly.backends import composed, reference
from evenly.backends.running import Running
from evenly.core.activation import IDENTITY, Activation
from evenly.core.partition import Partition


class Call(NamedTuple):
    """What one call asks for besides its tensors.

    Args:
        partition: which elements share statistics, over ``x``'s memory order.
        eps: added to the variance.
        activation: applied last.
        centered: False for RMS norm.
        zero_masked: whether the output is 0 where the mask is.
        group: the processes that share statistics, or None. Anything with
            ``merge(moments) -> moments`` and ``add(sums) -> sums``.
    """

    partition: Partition
    eps: float
    activation: Activation = IDENTITY
    centered: bool = True
    zero_masked: bool = False
    group: Any = None


class Given(NamedTuple):
    """Statistics that are given, not measured (evaluation, frozen); shape ``(outer, group)``."""

    mean: Tensor
    rstd: Tensor


def normalize(
    x: Tensor,
    call: Call,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    given: Given | None = None,
    running: Running | None = None,
) -> Tensor:
    """``activation(weight * (x - mean) * rstd + bias + residual)``; the one formula of the family.

    Args:
        x: dense in memory, its memory order as ``call.partition`` has it.
        call: the settings.
        weight: shape ``(channels,)``.
        bias: shape ``(channels,)``.
        residual: of ``x``'s shape.
        mask: weights of positions, in memory order (see `evenly.backends.reference.moments`).
        given: statistics to use in place of ``x``'s own.
        running: buffers that the measured statistics enter.
    """
    if plain(x, weight, bias, residual, mask):
        if residual is not None:
            residual = in_memory_order_of(x, residual)
        if torch.is_grad_enabled() and _needs_grad(x, weight, bias, residual):
            mean, rstd = given if given is not None else (None, None)
            y: Tensor = _Normalize.apply(x, weight, bias, residual, mask, mean, rstd, call, running)
            return y
        return _forward(x, call, weight, bias, residual, mask, given, running, keep=False)[0]
    return differentiable(x, call, weight, bias, residual, mask, given, running)


def differentiable(
    x: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    given: Given | None,
    running: Running | None,
) -> Tensor:
    """The same in differentiable torch operations: transforms, forward mode, subclasses, meta."""
    if residual is not None:
        residual = in_memory_order_of(x, residual)
    return _forward(x, call, weight, bias, residual, mask, given, running, keep=False, steps=reference)[0]


def plain(*tensors: Tensor | None) -> bool:
    """Whether a backend may read these tensors' memory: no transform, no subclass, no meta."""
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling():
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_meta):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def in_memory_order_of(x: Tensor, t: Tensor) -> Tensor:
    """``t`` with the strides of ``x``: itself where it has them, else a copy."""
    if t.stride() == x.stride() and t.shape == x.shape:
        return t
    if x.is_contiguous():
        return t.contiguous()
    order = reference.memory_order(x)
    return t.permute(order).contiguous().permute(sorted(range(x.ndim), key=order.__getitem__))


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def _forward(
    x: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    given: Given | None,
    running: Running | None,
    *,
    keep: bool,
    steps: Any = None,
) -> tuple[Tensor, Tensor, Tensor, int | Tensor, Tensor | None]:
    """``(y, mean, rstd, count, saved)`` by a backend's fused pair where there is one."""
    steps = backends.choose(x) if steps is None else steps
    zeroing = mask if call.zero_masked else None
    if given is not None:
        y, saved = steps.normalize(
            x, call.partition, *given, weight, bias, residual, call.activation, zeroing=zeroing, keep=keep
        )
        return y, *given, call.partition.count, saved
    options: dict[str, Any] = {
        "mask": mask, "zeroing": zeroing, "centered": call.centered, "keep": keep, "running": running,
    }  # fmt: skip
    arguments = (x, call.partition, call.eps, weight, bias, residual, call.activation)
    if call.group is not None or not hasattr(steps, "forward"):
        merge = call.group.merge if call.group is not None else None
        y, moments, rstd, saved = composed.forward(steps, *arguments, **options, merge=merge)
    else:
        y, moments, rstd, saved = steps.forward(*arguments, **options)
    return y, moments.mean, rstd, moments.count, saved


class _Normalize(torch.autograd.Function):
    """Eager, plain tensors: a backend's fused forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        call: Call,
        running: Running | None,
    ) -> Tensor:
        given = None if mean is None or rstd is None else Given(mean, rstd)
        y, mean, rstd, count, saved = _forward(x, call, weight, bias, residual, mask, given, running, keep=True)
        count, count_tensor = (None, count) if isinstance(count, Tensor) else (count, None)
        # x is needed for xhat (dweight, and dx through the statistics) and for the slope.
        needs_x = given is None or ctx.needs_input_grad[1] or (call.activation.name is not None)
        # A residual matters to the slope's own slope only where the activation is curved.
        curved = residual if call.activation.kind.slope in ("output", "input") else None
        ctx.save_for_backward(x if needs_x else None, weight, bias, curved, mask, mean, rstd, saved, count_tensor)
        ctx.call, ctx.count, ctx.measured = call, count, given is None
        return _own(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, mask, mean, rstd, saved, count_tensor = ctx.saved_tensors
        call: Call = ctx.call
        if torch.is_grad_enabled():
            given = None if ctx.measured else Given(mean, rstd)
            return _differentiate(dy, x, call, weight, bias, residual, mask, given, saved, ctx.needs_input_grad)
        x = dy if x is None else x
        dy = in_memory_order_of(x, dy)
        need_x, need_w, need_b, need_r = ctx.needs_input_grad[:4]
        steps = backends.choose(x)
        # Without an activation or zeroing dresidual is dy itself.
        own_residual = need_r and (call.activation.name is not None or call.zero_masked)
        options = {
            "mask": mask, "zeroing": mask if call.zero_masked else None, "centered": call.centered,
            "measured": ctx.measured, "dresidual": own_residual, "dx": need_x, "affine": need_w or need_b,
        }  # fmt: skip
        arguments = (
            dy, x, call.partition, mean, rstd, weight, bias, saved, call.activation,
            ctx.count if count_tensor is None else count_tensor,
        )  # fmt: skip
        if call.group is not None or not hasattr(steps, "backward"):
            add = call.group.add if call.group is not None else None
            dx, dweight, dbias, dresidual = composed.backward(steps, *arguments, **options, add=add)
        else:
            dx, dweight, dbias, dresidual = steps.backward(*arguments, **options)
        return (
            dx if need_x else None,
            dweight.to(weight.dtype) if need_w and dweight is not None else None,
            dbias.to(bias.dtype) if need_b and dbias is not None else None,
            (dresidual if own_residual else dy) if need_r else None,
            None, None, None, None, None,
        )  # fmt: skip


def _differentiate(
    dy: Tensor,
    x: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    given: Given | None,
    saved: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference formula."""
    x = torch.zeros_like(dy) if x is None else x
    if residual is None and needs[3] and saved is None:
        residual = torch.zeros_like(x)
    if saved is not None and residual is None:  # a piecewise linear activation after a residual
        if saved.dtype == torch.uint8:
            dy = dy * reference.slope_of_bits(saved, x, call.activation)
            call = call._replace(activation=IDENTITY)
            residual = torch.zeros_like(x)
        else:
            residual = saved
    inputs = [x, weight, bias, residual]
    # Aliases: a tensor used twice (x as its own residual) must get two gradients.
    aliases = [_alias(t) if need and t is not None else t for t, need in zip(inputs, needs, strict=False)]
    y = differentiable(aliases[0], call, *aliases[1:], mask, given, None)  # type: ignore[arg-type]
    wanted = [t for t, need in zip(aliases, needs, strict=False) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return (*(next(gradients) if need else None for need in needs[:4]), None, None, None, None, None)


def _alias(t: Tensor) -> Tensor:
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _own(y: Tensor) -> Tensor:
    """``y`` itself where it owns its memory; a view made inside a Function could not be changed in place."""
    if not y._is_view():
        return y
    return torch.empty(0, dtype=y.dtype, device=y.device).set_(
        y.untyped_storage(), y.storage_offset(), y.shape, y.stride()
    )
