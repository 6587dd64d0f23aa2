"""The definition in differentiable torch operations: transforms, forward mode, subclasses, meta, double backward."""

from __future__ import annotations

import torch
from torch import Tensor

from evenly.backends import reference
from evenly.backends.records import Given, Kept, Tensors
from evenly.backends.running import Running
from evenly.core.moments import Moments
from evenly.nn.call import Call
from evenly.nn.enter import enter


def normalize(x: Tensor, tensors: Tensors, call: Call) -> Tensor:
    """The output; the statistics enter the running ones where they may."""
    kernel, statistics = reference.Kernel(call.plan.norm, call.plan.order), call.statistics
    given = statistics if isinstance(statistics, Given) else None
    y, kept = kernel.composed_forward(x, tensors, given, keep=False, sharing=call.sharing)
    if isinstance(statistics, Running):
        enter(statistics, Moments(kept.count, kept.mean, kept.m2))
    return y


Needs = tuple[bool, bool, bool, bool]


def differentiate(
    dy: Tensor, x: Tensor, tensors: Tensors, kept: Kept, call: Call, needs: Needs
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight, bias and residual that can be differentiated again.

    Args:
        dy: gradient of the output.
        x: the input.
        tensors: weight, bias and mask of the call; the residual is in ``kept.slope``, or any will do.
        kept: what forward left; bits of slopes stand for a piecewise linear activation.
        call: the call.
        needs: which of the four are asked for.
    """
    kernel = reference.Kernel(call.plan.norm, call.plan.order)
    slope = kept.slope
    if slope is not None and slope.dtype == torch.uint8:
        dy = dy * kernel.slope_in_shape(slope, x)
        kernel, slope = reference.Kernel(call.plan.linear.norm, call.plan.order), None
    if slope is None and needs[3]:
        slope = torch.zeros_like(x)
    if call.sharing is not None and kept.measured:  # other processes wait for this one's message on the way to x
        needs = (True, *needs[1:])
    # Aliases: a tensor used twice (x as its own residual) must get two gradients.
    inputs = (x, tensors.weight, tensors.bias, slope)
    aliases = [_alias(t) if need and t is not None else t for t, need in zip(inputs, needs, strict=True)]
    a_x, a_weight, a_bias, a_residual = aliases
    assert a_x is not None
    again = Tensors(a_weight, a_bias, a_residual, tensors.mask)
    if kept.measured:
        y, _ = kernel.composed_forward(a_x, again, None, keep=False, sharing=call.sharing)
    else:
        y, _ = kernel.normalize(a_x, again, kept.mean, kept.rstd, keep=False)
    wanted = [t for t, need in zip(aliases, needs, strict=True) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return tuple(next(gradients) if need else None for need in needs)


def _alias(t: Tensor) -> Tensor:
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
