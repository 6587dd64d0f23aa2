"""Calls that only move elements: reshape, transpose, slice; done to a scale as to the value it belongs to."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from evenly.tools.fold import calls
from evenly.tools.fold.norms import Refused
from evenly.tools.fold.work import Work


def batch_stays(work: Work, node: fx.Node, a: Tensor, b: Tensor) -> None:
    """A reshape must keep the samples apart for every batch, not by the luck of this one."""
    if calls.short(node) not in ("reshape", "view", "squeeze", "flatten", "unflatten") and node.op != "call_module":
        return
    source: Any = node.args[0]
    shape, out = work.shape(source), work.shape(node)
    last = shape[-1:] == out[-1:] and all(t.shape[k] == 1 for t in (a, b) for k in range(t.ndim - 1))
    if not last and (not out or out[0] != shape[0]):
        raise Refused(f"{calls.name_of(node, work.root)} mixes samples and channels")


def moved(work: Work, node: fx.Node, tensor: Tensor) -> Any:
    """What a call that moves elements does to ``tensor``."""
    source: Any = node.args[0]
    args, kwargs = fx.node.map_arg((node.args[1:], dict(node.kwargs)), lambda n: work.values[n])
    if node.op == "call_module":
        return work.root.get_submodule(str(node.target))(tensor)
    if calls.short(node) == "getitem" and not isinstance(work.values.get(source), Tensor):
        raise Refused("a part of a split stands between")
    if node.op == "call_method":
        return getattr(tensor, str(node.target))(*args, **kwargs)
    return node.target(tensor, *args, **kwargs)  # type: ignore[operator]
