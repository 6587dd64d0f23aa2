"""The graph under work: which call is a layer, which a norm, what the example gave at each call."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from evenly.tools.fold.layers import Layer
from evenly.tools.fold.norms import Norm, Refused
from evenly.tools.fold.trace import Program


@dataclass
class Work:
    """All that the rules look at and change; the model's own tensors are never written.

    Args:
        program: the data flow.
        layers, norms: the records of the calls that are layers and norms.
        edges: what a padding call pads each channel with, in float64.
        values: what the example gave at each call.
        unsafe: calls whose value is written in place through a view.
        unread: norms that could not be read, and why.
        bypassed: calls that a trial takes out: a reader sees what they map to.
        split: calls that were part of a norm's own (residual, activation), and that norm.
        composed: norms that took in another scale and shift.
        arithmetic: constants that an exported program multiplies by or adds, read as norms.
        calls, removed: how often each module was called, and how many calls are folded away.
    """

    program: Program
    layers: dict[fx.Node, Layer] = field(default_factory=dict)
    norms: dict[fx.Node, Norm] = field(default_factory=dict)
    edges: dict[fx.Node, Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    unsafe: set[fx.Node] = field(default_factory=set)
    unread: dict[fx.Node, str] = field(default_factory=dict)
    bypassed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    split: dict[fx.Node, fx.Node] = field(default_factory=dict)
    composed: set[fx.Node] = field(default_factory=set)
    arithmetic: set[fx.Node] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)

    @property
    def graph(self) -> fx.Graph:
        """The calls."""
        return self.program.graph.graph

    @property
    def root(self) -> fx.GraphModule:
        """The module that the calls' names refer to."""
        return self.program.graph

    def name(self, node: fx.Node) -> str:
        """A call's name for people: its module's, or that of its weights, or the call's own."""
        if node.op == "call_module":
            return str(node.target)
        weight = node.args[1] if len(node.args) > 1 else None
        if node in self.layers and isinstance(weight, fx.Node) and weight.op == "get_attr":
            return str(weight.target).removesuffix(".weight")
        stack = node.meta.get("nn_module_stack")
        if stack:
            path = str(list(stack.values())[-1][0]).removeprefix("L['self'].")
            if path and (node in self.norms or node in self.unread):
                return path
        return node.name

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a call's value on the example."""
        value = self.values.get(node)
        if not isinstance(value, Tensor):
            raise Refused(f"{self.name(node)} gives no tensor")
        return tuple(value.shape)

    def source(self, node: fx.Node) -> Any:
        """What a call reads, past norms that are folded."""
        while node in self.bypassed:
            node = self.bypassed[node]
        return node

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The calls that read a value, past norms that are folded."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if self.bypassed.get(user) is node else [user]
        return found

    def kept(self) -> tuple[Any, ...]:
        """The records, to be put back by `restore`."""
        layers = {node: replace(layer) for node, layer in self.layers.items()}
        return layers, dict(self.norms), dict(self.edges), dict(self.bypassed), set(self.composed)

    def restore(self, kept: tuple[Any, ...]) -> None:
        """Put the records back."""
        self.layers, self.norms, self.edges, self.bypassed, self.composed = kept

    def take_out(self, node: fx.Node, put: fx.Node) -> None:
        """Erase a call that is folded; its readers read ``put``."""
        node.replace_all_uses_with(put, lambda user: user is not put)
        self.bypassed.pop(node, None)
        self.erase(node)

    def erase(self, node: fx.Node) -> None:
        """Erase a call that nobody reads, and its records."""
        if node.op == "call_module":
            self.removed[str(node.target)] += 1
        self.graph.erase_node(node)
        for records in (self.layers, self.norms, self.edges):
            records.pop(node, None)
        self.composed.discard(node)


def free_name(root: nn.Module, wanted: str) -> str:
    """``wanted``, or it with a number, whatever is not taken."""
    name, number = wanted, 0
    while _has(root, name):
        number += 1
        name = f"{wanted}_{number}"
    return name


def _has(root: nn.Module, name: str) -> bool:
    parent: Any = root
    for part in name.split("."):
        if not hasattr(parent, part):
            return False
        parent = getattr(parent, part)
    return True


def copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A layer that lets a fold pass, in the type of a trial."""
    if not any(True for _ in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).cpu().to(dtype)
