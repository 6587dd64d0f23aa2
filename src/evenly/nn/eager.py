"""The eager path: one autograd function around a backend's fused forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from evenly import backends
from evenly.backends import composed, reference
from evenly.backends.running import Running
from evenly.core.activation import IDENTITY
from evenly.nn.inplace import restorable, restore
from evenly.nn.normalize import Call, Given, differentiable, forward, in_memory_order_of, in_order


class Normalize(torch.autograd.Function):
    """Forward and backward of the one formula, on plain tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        given: Given | None,
        call: Call,
        running: Running | None,
    ) -> Tensor:
        """The output; saves what backward needs."""
        saves = _saves(x, call, weight, bias, residual, mask, given is None, ctx)
        keep = saves == "input"
        y, moments, rstd, saved = forward(
            x, call, weight, bias, residual, mask, given, running, keep=keep, spread=False
        )  # fmt: skip
        y, count = _own(y), moments.count
        count, count_tensor = (None, count) if isinstance(count, Tensor) else (count, None)
        kept = x if keep else None if saves == "nothing" else y
        # A residual matters to the slope's own slope only where the activation is curved.
        curved = residual if keep and residual is not None and call.activation.curved else None
        ctx.save_for_backward(kept, weight, bias, moments.mean, rstd, curved, mask, saved, count_tensor)
        ctx.kept = call, count, given is None, saves, None if keep else reference.memory_order(x)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight, bias and residual."""
        x, weight, bias, mean, rstd, residual, mask, saved, count_tensor = ctx.saved_tensors
        needs = ctx.needs_input_grad
        call, count, measured, saves, order = ctx.kept
        if saves == "restorable":
            if torch.is_grad_enabled():
                raise RuntimeError("second derivatives need the input itself; construct the layer with inplace=False.")
            x, mean = restore(x, call, rstd, weight, bias), torch.zeros_like(mean)
        elif saves == "output":  # its slope, after which the activation is done with
            dy = dy * reference.slope_of_output(x, call.activation)
            x, call = None, call._replace(activation=IDENTITY)
        if torch.is_grad_enabled():
            given = None if measured else Given(mean, rstd)
            return _differentiate(dy, x, call, weight, bias, residual, mask, given, saved, needs, order)
        dy = in_order(dy, order) if x is None else in_memory_order_of(x, dy)
        count = count if count_tensor is None else count_tensor
        x = dy if x is None else x
        return _gradients(dy, x, call, weight, bias, mask, mean, rstd, saved, count, measured, needs)


def _gradients(
    dy: Tensor,
    x: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    saved: Tensor | None,
    count: int | Tensor,
    measured: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """What backward returns, by a backend's fused pair where there is one."""
    need_x, need_w, need_b, need_r = needs[:4]
    partition, _, activation, centered, zero_masked, group, *_ = call
    zeroing = mask if zero_masked else None
    # Without an activation or zeroing dresidual is dy itself.
    own_residual = need_r and (activation.name is not None or zero_masked)
    steps = backends.choose(x)
    if group is None and hasattr(steps, "backward"):
        dx, dweight, dbias, dresidual = steps.backward(
            dy, x, partition, mean, rstd, weight, bias, saved, activation, count, mask=mask, zeroing=zeroing,
            centered=centered, measured=measured, dresidual=own_residual, dx=need_x, affine=need_w or need_b,
        )  # fmt: skip
    else:
        dx, dweight, dbias, dresidual = composed.backward(
            steps, dy, x, partition, mean, rstd, weight, bias, saved, activation, count, mask=mask, zeroing=zeroing,
            centered=centered, measured=measured, dresidual=own_residual, dx=need_x, affine=need_w or need_b,
            add=None if group is None else group.add,
        )  # fmt: skip
    return (
        dx if need_x else None,
        _like(weight, dweight) if need_w else None,
        _like(bias, dbias) if need_b else None,
        (dresidual if own_residual else dy) if need_r else None,
        None, None, None, None,
    )  # fmt: skip


class Alike(torch.autograd.Function):
    """The same where the input is all that is saved, by the kernels' pair for calls that are alike."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        call: Call,
        running: Running | None,
        given: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """The output; ``given`` are mean and variance of the channels."""
        y: Tensor
        if given is None:
            y, mean, rstd = call.pair.forward(x, weight, bias, running)
        else:
            mean, var = given[0].clone(), given[1]  # a batch may be entered before backward reads it
            rstd = torch.empty_like(mean)
            y = call.pair.given(x, weight, bias, mean, var, rstd)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.kept = call, given is None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight and bias."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        need_x, need_w, need_b = needs = ctx.needs_input_grad[:3]
        call, measured = ctx.kept
        if torch.is_grad_enabled():
            given = None if measured else Given(mean.unsqueeze(0), rstd.unsqueeze(0))
            return _differentiate(
                dy, x, call, weight, bias, None, None, given, None, (*needs, False), None
            )[:6]  # fmt: skip
        dy = in_memory_order_of(x, dy)
        dx, dweight, dbias = call.pair.backward(dy, x, weight, bias, mean, rstd, measured=measured, dx=need_x)
        return dx, dweight if need_w else None, dbias if need_b else None, None, None, None


def _applied(function: Any) -> Callable[..., Tensor]:
    """``function.apply`` without its look at every argument, which takes a third of the time.

    That look is for torch.func's transforms, where this path is never taken; else it comes down to
    its base's ``apply``. Private to torch, so guarded: its own where there is none.
    """
    applied: Callable[..., Tensor] = getattr(super(torch.autograd.Function, function), "apply", function.apply)
    return applied


apply, apply_alike = _applied(Normalize), _applied(Alike)


def _saves(
    x: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    measured: bool,
    ctx: Any,
) -> Literal["input", "output", "restorable", "nothing"]:
    """What must outlive forward.

    The input is needed for xhat (dweight, and dx through the statistics) and for the slope;
    with given statistics and a fixed weight the slope, where it can be told from the output,
    is all there is to know.
    """
    activation = call.activation
    if not measured and not ctx.needs_input_grad[1]:
        if activation.name is None:
            return "nothing"
        if activation.name in ("relu", "relu6") or (activation.invertible and x.dtype in _PRECISE):
            return "output"
    if not call.inplace:
        return "input"
    alone = residual is None and mask is None and measured
    if alone and x.dtype in _PRECISE and restorable(x, call, weight, bias):
        return "restorable"
    return "input"


# Half precision keeps its input: 8 to 11 bits of an output are too few to restore one.
_PRECISE = (torch.float32, torch.float64)


def _differentiate(
    dy: Tensor,
    x: Tensor | None,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    given: Given | None,
    saved: Tensor | None,
    needs: tuple[bool, ...],
    order: tuple[int, ...] | None,
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference formula."""
    if x is None:  # statistics were given and nothing is curved: any input has these gradients
        x = torch.zeros_like(in_order(dy, order)) if order is not None else torch.zeros_like(dy)
    if residual is None and needs[3] and saved is None:
        residual = torch.zeros_like(x)
    if saved is not None and residual is None:  # a piecewise linear activation after a residual
        if saved.dtype == torch.uint8:
            dy = dy * reference.slope_of_bits(saved, x, call.activation)
            call = call._replace(activation=IDENTITY)
            residual = torch.zeros_like(x)
        else:
            residual = saved
    if call.group is not None and given is None:  # other processes wait for this one's message on the way to x
        needs = (True, *needs[1:])
    inputs = [x, weight, bias, residual]
    # Aliases: a tensor used twice (x as its own residual) must get two gradients.
    aliases = [_alias(t) if need and t is not None else t for t, need in zip(inputs, needs, strict=False)]
    a_x, a_weight, a_bias, a_residual = aliases
    assert a_x is not None
    y = differentiable(a_x, call, a_weight, a_bias, a_residual, mask, given, None)
    wanted = [t for t, need in zip(aliases, needs, strict=False) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return (*(next(gradients) if need else None for need in needs[:4]), None, None, None, None)


def _like(parameter: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """A parameter's gradient in its type."""
    if gradient is None or parameter is None or gradient.dtype is parameter.dtype:
        return gradient
    return gradient.to(parameter.dtype)


def _alias(t: Tensor) -> Tensor:
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _own(y: Tensor) -> Tensor:
    """``y`` itself where it owns its memory; a view made inside a Function could not be changed in place."""
    if not y._is_view():
        return y
    return torch.empty(0, dtype=y.dtype, device=y.device).set_(
        y.untyped_storage(), y.storage_offset(), y.shape, y.stride()
    )
