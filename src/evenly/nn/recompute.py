"""Whether this forward is activation checkpointing's second one.

A recompute must not update running statistics: the batch was counted the first time. Inside
the autograd engine ``torch._C._current_graph_task_id()`` differs from -1; that is also so in a
gradient hook, whose forward is genuine. So only then the call stack is read: from here
outwards, torch.utils.checkpoint comes before the engine's own entry if it is the one asking.
"""

from __future__ import annotations

import sys

import torch
import torch.autograd.graph
import torch.utils.checkpoint

_CHECKPOINT = torch.utils.checkpoint.__file__
_ENGINE = torch.autograd.graph.__file__
# Private, so guarded: where a torch lacks it, the stack is read at every training forward.
_task_id = getattr(torch._C, "_current_graph_task_id", lambda: 0)


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
