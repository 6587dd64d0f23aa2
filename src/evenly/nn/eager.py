"""The eager path: one autograd function around a kernel's forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evenly.backends import reference
from evenly.backends.guard import UnreadableError, all_ordinary
from evenly.backends.kernel import Kernel
from evenly.backends.records import Gradients, Kept, Tensors, Wanted
from evenly.nn import kept as keeping
from evenly.nn.call import Call
from evenly.nn.differentiable import differentiate
from evenly.nn.situation import undisturbed


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
        call: Call,
    ) -> Tensor:
        """The output; saves what backward needs."""
        tensors = Tensors(weight, bias, residual, mask)
        strategy = keeping.strategy(x, tensors, call, weight_needs_gradient=ctx.needs_input_grad[1])
        y, kept = _forward(x, tensors, call, keep=True)
        if y._is_view():
            y = _own(y)
        strategy.keep(ctx, x, y, tensors, kept, call)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight, bias and residual."""
        need_x, need_w, need_b, need_r = needs = ctx.needs_input_grad[:4]
        strategy, call, *_ = ctx.kept
        dy, x, kernel, tensors, kept = strategy.recover(ctx, dy)
        if torch.is_grad_enabled():
            call = call._replace(plan=call.plan._replace(kernel=kernel))
            return *differentiate(dy, x, tensors, kept, call, needs), None, None
        # Without an activation or zeroing the residual's gradient is dy itself.
        norm = kernel.norm
        own = need_r and (norm.activation.name is not None or (norm.zero_masked and tensors.mask is not None))
        wanted = Wanted(need_x, need_w or need_b, own)
        dx, dweight, dbias, dresidual = _backward(dy, x, kernel, tensors, kept, wanted, call)
        return (
            dx,
            _of_type(tensors.weight, dweight) if need_w else None,
            _of_type(tensors.bias, dbias) if need_b else None,
            dresidual if own else dy if need_r else None,
            None,
            None,
        )


def without_gradient(x: Tensor, tensors: Tensors, call: Call) -> Tensor:
    """The output, where nobody will ask for a gradient."""
    return _forward(x, tensors, call, keep=False)[0]


def _forward(x: Tensor, tensors: Tensors, call: Call, *, keep: bool) -> tuple[Tensor, Kept]:
    kernel = call.plan.kernel
    if call.sharing is None:
        return kernel.forward(x, tensors, call.statistics, keep=keep)
    return kernel.composed_forward(x, tensors, call.statistics, keep=keep, sharing=call.sharing)


def _backward(
    dy: Tensor, x: Tensor, kernel: Kernel, tensors: Tensors, kept: Kept, wanted: Wanted, call: Call
) -> Gradients:
    """By the kernel; the definition takes gradients that are batched, have tangents or are part of a graph."""
    if undisturbed() and (kernel.guards or all_ordinary((dy, x))):
        with contextlib.suppress(UnreadableError):
            return _by(kernel, dy, x, tensors, kept, wanted, call)
    return _by(reference.Kernel(kernel.norm, kernel.order), dy, x, tensors, kept, wanted, call)


def _by(kernel: Kernel, dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, wanted: Wanted, call: Call) -> Gradients:
    if call.sharing is None:
        return kernel.backward(dy, x, tensors, kept, wanted)
    return kernel.composed_backward(dy, x, tensors, kept, wanted, call.sharing)


def _of_type(parameter: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """A parameter's gradient in its type."""
    if gradient is None or parameter is None or gradient.dtype is parameter.dtype:
        return gradient
    return gradient.to(parameter.dtype)


def _own(y: Tensor) -> Tensor:
    """``y`` as the owner of its memory; a view made inside a Function could not be changed in place."""
    return torch.empty(0, dtype=y.dtype, device=y.device).set_(
        y.untyped_storage(), y.storage_offset(), y.shape, y.stride()
    )


# `apply` without its look at every argument, which takes a third of the time. That look is for torch.func's
# transforms, where this path is never taken; else it comes down to its base's `apply`. Private to torch, so
# guarded: its own where there is none.
apply: Callable[..., Tensor] = getattr(super(torch.autograd.Function, Normalize), "apply", Normalize.apply)
