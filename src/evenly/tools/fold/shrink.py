"""What is redundant after folding: biases that are zero or subtracted again, channels that are constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from evenly.tools.fold import calls
from evenly.tools.fold.layers import Layer
from evenly.tools.fold.work import Work


def drop_biases(work: Work) -> list[str]:
    """Remove biases that are zero after folding, or that an instance norm that measures subtracts again."""
    dropped = []
    for node, layer in work.layers.items():
        if layer.bias is None or node in work.unsafe:
            continue
        zero = layer.changed and not bool(layer.bias.any())
        if zero or _subtracted(work, node):
            layer.bias, layer.changed = None, True
            dropped.append(work.name(node))
    return dropped


def _subtracted(work: Work, node: fx.Node) -> bool:
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_module" or node.op != "call_module":
        return False
    module: Any = work.root.get_submodule(str(readers[0].target))
    plain = type(module) in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    return plain and isinstance(module, _InstanceNorm) and module.running_mean is None


def prune(work: Work) -> list[str]:
    """Remove output channels whose weights are all zero, and the inputs that read their constant."""
    pruned = []
    for node in list(work.graph.nodes):
        if node in work.layers:
            pruned += _prune_one(work, node)
    return pruned


def _prune_one(work: Work, node: fx.Node) -> list[str]:
    """Constant channels of one layer, if one chain of plain calls leads to one layer that reads them."""
    layer = work.layers[node]
    if layer.transposed or layer.groups != 1 or layer.axis(len(work.shape(node))) != 1:
        return []
    dead = ~layer.weight.flatten(1).any(1)
    if not bool(dead.any()) or bool(dead.all()):
        return []
    bias = layer.bias if layer.bias is not None else torch.zeros(layer.outputs, dtype=torch.float64)
    found = _reader(work, node, bias)
    if found is None:
        return []
    reader, values, repeat = found
    behind = work.layers[reader]
    border = any(p for pair in behind.pads() for p in pair)
    if border:
        edges = behind.edges if behind.edges is not None else torch.zeros_like(values)
        dead = dead & (values == edges)
    gone = int(dead.sum())
    if not gone or gone == len(dead):
        return []
    return _cut(work, node, reader, dead, values, repeat)


def _cut(work: Work, node: fx.Node, reader: fx.Node, dead: Tensor, values: Tensor, repeat: int) -> list[str]:
    layer, behind = work.layers[node], work.layers[reader]
    inputs = dead.repeat_interleave(repeat)
    weights = behind.weight[:, inputs]
    constant = values[dead].repeat_interleave(repeat).reshape(1, -1, *[1] * (behind.weight.ndim - 2))
    added = (weights * constant).flatten(1).sum(1)
    behind.bias = added if behind.bias is None else behind.bias + added
    behind.weight = behind.weight[:, ~inputs]
    behind.edges = None if behind.edges is None else behind.edges[~inputs]
    layer.weight = layer.weight[~dead]
    layer.bias = None if layer.bias is None else layer.bias[~dead]
    layer.changed = behind.changed = True
    return [f"{work.name(node)}: channel {int(c)}, always {float(values[c]):.6g}" for c in dead.nonzero()]


_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.Mish, nn.Softplus, nn.SELU, nn.CELU, nn.Hardtanh,
)  # fmt: skip
_SAFE = {"relu", "relu_", "relu6", "leaky_relu", "silu", "gelu", "sigmoid", "tanh", "elu", "hardswish"}


def _reader(work: Work, node: fx.Node, values: Tensor) -> tuple[fx.Node, Tensor, int] | None:
    """The one layer behind ``node``, the constants that reach it, and how many inputs each channel became."""
    repeat = 1
    now = node
    while len(now.users) == 1 and now not in work.unsafe:
        (reader,) = now.users
        if reader in work.layers:
            behind = work.layers[reader]
            fits = not behind.transposed and behind.groups == 1 and behind.inputs == len(values) * repeat
            plain = getattr(behind.like, "padding_mode", "zeros") == "zeros"
            return (reader, values, repeat) if fits and plain and reader.args == (now,) else None
        step = _through(work, reader, now, values)
        if step is None or (repeat > 1 and step[1] > 1):
            return None
        values, repeat, now = step[0], repeat * step[1], reader
    return None


def _through(work: Work, reader: fx.Node, node: fx.Node, values: Tensor) -> tuple[Tensor, int] | None:
    if not reader.args or reader.args[0] is not node or len(reader.all_input_nodes) != 1:
        return None
    kind = calls.kind_of(reader, work.root)
    if kind in ("same", "means", "greatest"):
        return values, 1
    module = work.root.get_submodule(str(reader.target)) if reader.op == "call_module" else None
    if isinstance(module, nn.Flatten) or calls.short(reader) == "flatten":
        shape, out = work.values[node].shape, work.values[reader].shape
        if len(out) == 2 and out[0] == shape[0]:
            return values, out[1] // shape[1]
        return None
    with torch.no_grad():
        if type(module) in _ELEMENTWISE and module is not None:
            return module(values.clone()), 1
        if reader.op == "call_function" and calls.short(reader) in _SAFE:
            return reader.target(values.clone(), *reader.args[1:], **reader.kwargs), 1  # type: ignore[operator]
    return None


__all__ = ["Layer", "drop_biases", "prune"]
