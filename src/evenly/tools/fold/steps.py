"""One fold's path: what takes a scale and a shift in, through which calls, by which rules; and the taking."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from evenly.tools.fold import calls
from evenly.tools.fold.layers import Layer
from evenly.tools.fold.norms import Norm, Refused
from evenly.tools.fold.work import Work

PASSES = {
    "same": "through identity", "moves": "through reshape or transpose", "means": "through a mean",
    "greatest": "through a maximum, scale positive", "scales": "through ReLU, scale positive",
    "cat": "through a concatenation",
    "add": "through a sum", "pad": "through padding",
}  # fmt: skip


@dataclass
class Step:
    """One thing that is folded into: a layer's outputs or inputs, another norm, or a padding's values."""

    node: fx.Node
    where: str
    scale: Tensor
    shift: Tensor


@dataclass
class Path:
    """Where one norm goes.

    Args:
        steps: what takes it in.
        region: the calls between, and those that take it in.
        rules: the names of the rules that it used.
    """

    steps: list[Step] = field(default_factory=list)
    region: set[fx.Node] = field(default_factory=set)
    rules: list[str] = field(default_factory=list)

    def use(self, rule: str) -> None:
        """Note a rule, once."""
        if rule not in self.rules:
            self.rules.append(rule)


def rule_before(layer: Layer) -> str:
    """The rule's name for a norm behind ``layer``."""
    kind = "linear" if layer.rank == 0 else "transposed convolution" if layer.transposed else "convolution"
    return f"norm after {kind}"


def rule_behind(layer: Layer, shift: Tensor) -> str:
    """The rule's name for a norm before ``layer``."""
    kind = "linear" if layer.rank == 0 else "transposed convolution" if layer.transposed else "convolution"
    padded = has_border(layer) and bool(shift.any())
    return f"norm before {'padded ' if padded else ''}{kind}"


def has_border(layer: Layer) -> bool:
    """Whether a layer pads its input with zeros."""
    zeros = getattr(layer.like, "padding_mode", "zeros") == "zeros"
    return not layer.transposed and zeros and any(p for pair in layer.pads() for p in pair)


def edge_of(old: Tensor, scale: Tensor, shift: Tensor, name: str) -> Tensor:
    """What to pad with before the norm, so that the norm would make it ``old``: ``(old - b) / a``."""
    needs = old != shift
    dead = needs & (scale == 0)
    if bool(dead.any()):
        raise Refused(f"{name} pads with zeros, and the scale of channel {int(dead.nonzero()[0])} is 0")
    edge = torch.where(
        needs, (old - shift) / torch.where(scale == 0, torch.ones_like(scale), scale), torch.zeros_like(old)
    )
    if not bool((edge.abs() < 1e30).all()):
        raise Refused(f"{name} pads with zeros, and a scale is too small")
    return edge


def take(work: Work, step: Step) -> None:
    """Do one step."""
    node, a, b = step.node, step.scale, step.shift
    if step.where == "norm before":
        norm = work.norms[node]
        work.norms[node] = Norm(norm.scale * a, norm.shift * a + b, norm.channel)
        work.composed.add(node)
    elif step.where == "norm behind":
        norm = work.norms[node]
        work.norms[node] = Norm(norm.scale * a, norm.scale * b + norm.shift, norm.channel)
        work.composed.add(node)
    elif step.where == "edges":
        given = calls.settings(node, work.root).get("value") or 0.0
        old = work.edges.get(node, torch.full_like(b, float(given)))
        work.edges[node] = edge_of(old, a, b, work.name(node))
    elif step.where == "outputs":
        work.layers[node].scale_outputs(a, b)
    else:
        layer = work.layers[node]
        if has_border(layer) and (bool(b.any()) or layer.edges is not None):
            old = layer.edges if layer.edges is not None else torch.zeros_like(b)
            layer.edges = edge_of(old, a, b, work.name(node))
        layer.scale_inputs(a, b)


def full(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A scale or shift for every element."""
    return tensor.expand(shape)


def small(tensor: Tensor) -> Tensor:
    """Cut every axis along which the tensor does not change to size 1."""
    for axis in range(tensor.ndim):
        first = tensor.narrow(axis, 0, min(1, tensor.shape[axis]))
        if tensor.shape[axis] > 1 and bool((tensor == first).all()):
            tensor = first
    return tensor.clone()


def count(shape: tuple[int, ...]) -> int:
    """The number of elements of a shape."""
    return math.prod(shape)


def repeats(reader: fx.Node, node: fx.Node) -> int:
    """How often beyond once a call reads one value."""
    seen: list[fx.Node] = []
    fx.node.map_arg((reader.args, reader.kwargs), seen.append)
    return seen.count(node) - 1 if node in seen else 0


def told(work: Work, node: fx.Node) -> str:
    """A call's name in a reason."""
    return work.name(node) if node.op == "call_module" or node in work.layers else calls.name_of(node, work.root)
