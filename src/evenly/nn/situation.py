"""Where a call finds itself: on plain tensors, in a graph, under a transform, leaving torch, recomputing.

A recompute (activation checkpointing's second forward) must not enter its batch into running
statistics: it was counted the first time. Inside the autograd engine
``torch._C._current_graph_task_id()`` differs from -1; that is also so in a gradient hook, whose
forward is genuine. So only then the call stack is read: from here outwards, torch.utils.checkpoint
comes before the engine's own entry if it is the one asking.
"""

from __future__ import annotations

import sys
import warnings

import torch
import torch.autograd.graph
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd import forward_ad

from evenly.backends.guard import all_ordinary
from evenly.backends.running import Running

_CHECKPOINT = torch.utils.checkpoint.__file__
_ENGINE = torch.autograd.graph.__file__
# Private, so guarded: where a torch lacks it, the stack is read at every training forward.
_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
_task_id = getattr(torch._C, "_current_graph_task_id", lambda: 0)


def plain(*tensors: Tensor | None) -> bool:
    """Whether a backend may have these tensors: no graph, transform, mode, tangent, subclass or meta."""
    return undisturbed() and all_ordinary(tensors)


def undisturbed() -> bool:
    """Whether nothing watches or transforms torch's operators here: no graph, transform, mode or tangent."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.get_dynamic_layer_stack_depth() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def hooked() -> bool:
    """Whether somebody's hooks pack what is saved for backward, whose layouts torch's own layer norm does not check."""
    return _saved_tensors_hooks(False) is not None


def in_graph() -> bool:
    """Whether torch.compile is building a graph, which may hold our operators (an exported one may not)."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not transformed()


def transformed() -> bool:
    """Whether a torch.func transform is at work."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def leaving() -> bool:
    """Whether this call is being written down for a program that does not know evenly."""
    return torch._C._get_tracing_state() is not None or (
        torch.compiler.is_compiling() and torch.compiler.is_exporting()
    )


def recomputing() -> bool:
    """Whether a checkpoint is recomputing this forward during backward."""
    return _task_id() != -1 and _asked_by_checkpoint()


def _asked_by_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _CHECKPOINT and frame.f_code.co_name in ("backward", "unpack_hook", "recompute_fn"):
            return True
        if file == _ENGINE:  # the engine called somebody's hook, and the hook called us
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def may_write(running: Running) -> bool:
    """Whether buffers can be written under the transforms at work, if any; warns where they cannot.

    torch refuses in-place updates under ``grad``; under ``vmap`` a buffer must be batched to take
    what is batched.
    """
    if not transformed():
        return True
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
