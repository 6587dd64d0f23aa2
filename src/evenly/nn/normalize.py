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
        pair: the kernels' pair for calls like this one (`evenly.backends.cpu.Pair`), where it is known.
    """

    partition: Partition
    eps: float
    activation: Activation = IDENTITY
    centered: bool = True
    zero_masked: bool = False
    group: Any = None
    inplace: bool = False
    pair: Any = None


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
        if _needs_gradients(x, weight, bias, residual):
            y: Tensor
            if residual is None and mask is None and given is None and _alike(call, weight, bias, running):
                y = eager.apply_alike(x, weight, bias, call, running, None)
            else:
                y = eager.apply(x, weight, bias, residual, mask, given, call, running)
            return y
        return forward(x, call, weight, bias, residual, mask, given, running, keep=False)[0]
    if _in_graph() and call.group is None:
        from evenly.nn.compiled import normalize_compiled

        return normalize_compiled(x, call, weight, bias, residual, mask, given, running)
    return differentiable(x, call, weight, bias, residual, mask, given, running)


def normalize_by_pair(
    x: Tensor, call: Call, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
) -> Tensor | None:
    """`normalize` by given mean and variance of the channels, or None where the kernels' pair does not do it."""
    pair = call.pair
    if pair is None or call.inplace or not plain(x, weight, bias, mean, var):
        return None
    if backends.reference_alone() or not pair.takes(weight, bias, mean, var):
        return None
    y: Tensor
    if not _needs_gradients(x, weight, bias):
        y = pair.given(x, weight, bias, mean, var)
    elif weight is None or not weight.requires_grad:  # the input need not be saved
        return None
    else:
        y = eager.apply_alike(x, weight, bias, call, None, (mean, var))
    return y


def _needs_gradients(*tensors: Tensor | None) -> bool:
    """Whether backward will be asked for any of them."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _alike(call: Call, weight: Tensor | None, bias: Tensor | None, running: Running | None) -> bool:
    """Whether the kernels' pair for calls that are alike does this one."""
    pair = call.pair
    if pair is None or call.group is not None or call.inplace or backends.reference_alone():
        return False
    if running is None:
        return bool(pair.takes(weight, bias))
    return running.pending is None and bool(pair.takes(weight, bias, running.mean, running.var))


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
        if t is not None and (type(t) not in _PLAIN or t.is_meta or _wrapped(t)):
            return False
    return True


# Also what outlived its transform, and has no memory of its own.
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
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
    """``t``, of ``x``'s shape, in ``x``'s memory order: itself where it lies so, else a copy."""
    if (t.is_contiguous() and x.is_contiguous()) or t.stride() == x.stride():
        return t
    return in_order(t, reference.memory_order(x))


def in_order(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """``t`` dense, with its axes in memory as ``order`` names them; copied where they are not."""
    if order == tuple(range(t.ndim)):
        return t.contiguous()
    return t.permute(order).contiguous().permute(sorted(range(t.ndim), key=order.__getitem__))


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
    spread: bool = True,
    steps: Any = None,
) -> tuple[Tensor, Moments, Tensor, Tensor | None]:
    """``(y, moments, rstd, saved)`` by a backend's fused pair where there is one; ``spread`` asks for m2."""
    if steps is None:
        steps = backends.choose(x)
    partition, eps, activation, centered, zero_masked, group, *_ = call
    zeroing = mask if zero_masked else None
    if given is not None:
        y, saved = steps.normalize(
            x, partition, *given, weight, bias, residual, activation, zeroing=zeroing, keep=keep
        )  # fmt: skip
        return y, Moments(partition.count, given.mean, None), given.rstd, saved
    # Kernels write the buffers for one batch; pooling micro-batches, and what a graph must see, is beside them.
    beside = running is not None and (running.pending is not None or torch.compiler.is_compiling())
    inside = None if beside else running
    if group is None and hasattr(steps, "forward"):
        y, moments, rstd, saved = steps.forward(
            x, partition, eps, weight, bias, residual, activation, mask=mask, zeroing=zeroing,
            centered=centered, keep=keep, running=inside, spread=spread or beside,
        )  # fmt: skip
    else:
        y, moments, rstd, saved = composed.forward(
            steps, x, partition, eps, weight, bias, residual, activation, mask=mask, zeroing=zeroing,
            centered=centered, keep=keep, running=inside, merge=None if group is None else group.merge,
        )  # fmt: skip
    if beside:
        assert running is not None
        enter(running, moments)
    return y, moments, rstd, saved


from evenly.nn import eager  # noqa: E402  # last: it is built on what is above, and asked at every call
