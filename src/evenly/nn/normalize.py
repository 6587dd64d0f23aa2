"""Which path a call takes: from checked arguments to a backend.

Every layer and functional ends in `normalize`. It is the only place that decides between the
eager autograd function, a backend called directly, the compiled graph's operator, and
differentiable torch operations.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from evenly import backends
from evenly.backends import composed, reference
from evenly.backends.running import Running, update
from evenly.core.activation import IDENTITY, Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.nn.recompute import recomputing


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
        inplace: whether backward may restore the input from the output (see `evenly.nn.inplace`).
    """

    partition: Partition
    eps: float
    activation: Activation = IDENTITY
    centered: bool = True
    zero_masked: bool = False
    group: Any = None
    inplace: bool = False


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
        residual: of ``x``'s shape and type.
        mask: weights of positions, in memory order (see `evenly.backends.reference.moments`).
        given: statistics to use in place of ``x``'s own.
        running: buffers that the measured statistics enter.
    """
    if plain(x, weight, bias, residual, mask):
        if residual is not None:
            residual = in_memory_order_of(x, residual)
        if running is not None and recomputing():
            running = None
        if torch.is_grad_enabled() and _needs_grad(x, weight, bias, residual):
            mean, rstd = given if given is not None else (None, None)
            y: Tensor = eager.Normalize.apply(x, weight, bias, residual, mask, mean, rstd, call, running)
            return y
        return forward(x, call, weight, bias, residual, mask, given, running, keep=False)[0]
    if _in_graph() and call.group is None:
        from evenly.nn.compiled import normalize_compiled

        return normalize_compiled(x, call, weight, bias, residual, mask, given, running)
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
    if running is not None and not may_write(running):
        running = None
    return forward(x, call, weight, bias, residual, mask, given, running, keep=False, steps=reference)[0]


def plain(*tensors: Tensor | None) -> bool:
    """Whether a backend may read these tensors' memory: no transform, mode, tangent, subclass or meta."""
    if (
        torch.compiler.is_compiling()
        or torch._C._functorch.get_dynamic_layer_stack_depth() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    ):
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_meta):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _in_graph() -> bool:
    """Whether torch.compile is building a graph, which may hold our operators (an exported one may not)."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not transformed()


def transformed() -> bool:
    """Whether a torch.func transform is at work."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def enter(running: Running, moments: Moments) -> None:
    """Enter statistics into the running ones, unless this forward must not: a recompute, a transform."""
    if _in_graph():
        from evenly.nn.compiled import counts

        update(running, moments, live=counts(moments.mean))
    elif may_write(running):
        update(running, moments)


def may_write(running: Running) -> bool:
    """Whether this forward's statistics count, and can be written under the transforms at work, if any.

    A checkpoint's recompute does not count. torch refuses in-place updates under ``grad``; under
    ``vmap`` a buffer must be batched to take what is batched.
    """
    if not transformed():
        return torch.compiler.is_compiling() or not recomputing()
    if torch.compiler.is_compiling():
        return False  # the transforms' levels cannot be looked at from within a graph
    functorch = torch._C._functorch
    batched = all(functorch.is_batchedtensor(t) for t in (running.mean, running.var))
    levels = functorch.get_interpreter_stack() or []
    if batched and all(level.key() == functorch.TransformType.Vmap for level in levels):
        return True
    warnings.warn(
        "running statistics are not updated under torch.func.grad, nor under vmap unless the buffers are batched; "
        "evenly.functional.batch_norm(..., return_stats=True) returns them.",
        UserWarning,
        stacklevel=2,
    )
    return False


def in_memory_order_of(x: Tensor, t: Tensor) -> Tensor:
    """``t`` with the strides of ``x``: itself where it has them, else a copy."""
    if t.stride() == x.stride() and t.shape == x.shape:
        return t
    return in_order(t, reference.memory_order(x))


def in_order(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """``t`` dense, with its axes in memory as ``order`` names them; copied where they are not."""
    if order == tuple(range(t.ndim)):
        return t.contiguous()
    return t.permute(order).contiguous().permute(sorted(range(t.ndim), key=order.__getitem__))


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def forward(
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
) -> tuple[Tensor, Moments, Tensor, Tensor | None]:
    """``(y, moments, rstd, saved)`` by a backend's fused pair where there is one."""
    steps = backends.choose(x) if steps is None else steps
    zeroing = mask if call.zero_masked else None
    if given is not None:
        y, saved = steps.normalize(
            x, call.partition, *given, weight, bias, residual, call.activation, zeroing=zeroing, keep=keep
        )
        return y, Moments(call.partition.count, given.mean, None), given.rstd, saved
    # Kernels write the buffers for one batch; pooling micro-batches, and what a graph must see, is beside them.
    beside = running is not None and (running.pending is not None or torch.compiler.is_compiling())
    inside = None if beside else running
    options: dict[str, Any] = {
        "mask": mask, "zeroing": zeroing, "centered": call.centered, "keep": keep, "running": inside,
    }  # fmt: skip
    arguments = (x, call.partition, call.eps, weight, bias, residual, call.activation)
    if call.group is not None or not hasattr(steps, "forward"):
        merge = call.group.merge if call.group is not None else None
        y, moments, rstd, saved = composed.forward(steps, *arguments, **options, merge=merge)
    else:
        y, moments, rstd, saved = steps.forward(*arguments, **options)
    if running is not None and beside:
        enter(running, moments)
    return y, moments, rstd, saved


from evenly.nn import eager  # noqa: E402  # last: it is built on what is above, and asked at every call
