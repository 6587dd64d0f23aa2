"""The folded model: a copy of the model's own class where that can be, else a graph; plain torch either way."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from evenly.tools import walk
from evenly.tools.fold import norms
from evenly.tools.fold.layers import Layer
from evenly.tools.fold.trial import pad_pairs
from evenly.tools.fold.work import Work, free_name


class Structural(Exception):  # noqa: N818  # not an error: the reason why a graph is needed
    """Why replacing modules is not enough."""


def as_module(work: Work) -> nn.Module:
    """The model's own class with modules replaced.

    Raises:
        Structural: that is not enough.
    """
    if not work.program.traced:
        raise Structural("an exported program")
    if work.edges or work.composed or any(layer.edges is not None for layer in work.layers.values()):
        raise Structural("a padding or a scale is written out")
    root, changed = work.program.root, _replacements(work)
    pinned = _pinned(work)
    if set(changed) & pinned:
        raise Structural("a replaced layer is used elsewhere, too")
    modules = {root.get_submodule(name): module for name, module in changed.items()}
    return walk.replace(root, lambda _, module: modules.get(module) or norms.plain(module))


def _replacements(work: Work) -> dict[str, nn.Module]:
    """For each module that changes, what takes its place at all of its calls."""
    found: dict[str, nn.Module] = {}
    for node, layer in work.layers.items():
        if layer.changed and node.op != "call_module":
            raise Structural("a layer that is called as a function")
    by_target = _targets(work)
    for target, nodes in by_target.items():
        records = [work.layers.get(n) for n in nodes]
        if not any(r is not None and r.changed for r in records):
            continue
        if len(nodes) + work.removed[target] != work.calls[target] or not _alike(records):
            raise Structural(f"{target} is called more than once")
        assert records[0] is not None
        found[target] = records[0].final()
    for target, count in work.removed.items():
        if count != work.calls[target] or work.root.get_submodule(target) is None:
            raise Structural(f"{target} is called more than once")
        if Layer.of(work.root.get_submodule(target)) is not None:
            raise Structural(f"{target} went into another branch")
        found.setdefault(target, nn.Identity())
    for node, norm in work.split.items():
        if node.op != "call_module":
            raise Structural("a residual of a norm is written out")
        if work.removed[_origin(work, norm)]:
            found[_origin(work, norm)] = work.root.get_submodule(str(node.target))
    return found


def _origin(work: Work, norm: fx.Node) -> str:
    return str(norm.target)


def _targets(work: Work) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = {}
    for node in work.graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), []).append(node)
    return found


def _alike(records: list[Layer | None]) -> bool:
    first = records[0]
    return first is not None and all(r is not None and _equal(r, first) for r in records)


def _equal(one: Layer, other: Layer) -> bool:
    if (one.bias is None) != (other.bias is None) or one.weight.shape != other.weight.shape:
        return False
    same = one.bias is None or (other.bias is not None and torch.equal(one.bias, other.bias))
    edges = (one.edges is None) == (other.edges is None)
    if edges and one.edges is not None and other.edges is not None:
        edges = torch.equal(one.edges, other.edges)
    return bool(same and edges and torch.equal(one.weight, other.weight))


def _pinned(work: Work) -> set[str]:
    """The modules that are seen in another way than by their calls: their tensors read, or inside a leaf."""
    pinned = {str(n.target).rpartition(".")[0] for n in work.graph.nodes if n.op == "get_attr"}
    inside = {m for t in _targets(work) for m in list(work.root.get_submodule(t).modules())[1:]}
    return pinned | {t for t in _targets(work) if work.root.get_submodule(t) in inside}


def as_graph(work: Work) -> tuple[fx.GraphModule, list[str]]:
    """The graph with the folded layers in it; what was cloned."""
    root, cloned = work.root, []
    pinned = _pinned(work) if work.program.traced else set()
    for target, nodes in _targets(work).items():
        cloned += _install(work, target, nodes, target in pinned)
    for node, layer in list(work.layers.items()):
        if node.op != "call_module" and layer.changed:
            _install_function(work, node, layer)
    for node, layer in list(work.layers.items()):
        if layer.edges is not None and node.op == "call_module":
            _write_padding(work, node, layer.edges, layer.pads(), len(work.shape(node)) - 1 - layer.rank, node)
    for node, edges in list(work.edges.items()):
        put = _write_padding(work, node, edges, pad_pairs(work, node), 1, None)
        node.replace_all_uses_with(put)
        work.graph.erase_node(node)
    for node in list(work.composed):
        _write_scale(work, node)
    _plain_left(work)
    for node in reversed(list(work.graph.nodes)):
        if node.op in ("get_attr",) and not node.users:
            work.graph.erase_node(node)
    _drop_constants(work)
    work.graph._tracer_cls = None
    work.graph.lint()
    made = fx.GraphModule(root, work.graph, type(root).__name__)  # an exported program's own has no eval()
    made.delete_all_unused_submodules()
    return made.eval(), cloned


def _drop_constants(work: Work) -> None:
    """Erase what only folded calls read: weights, and what was computed from them."""
    for node in reversed(list(work.graph.nodes)):
        if not node.users and node.op in ("get_attr", "call_function", "call_method"):
            pure = node.op == "get_attr" or _from_constants(node)
            if pure:
                work.graph.erase_node(node)


def _from_constants(node: fx.Node) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(n.op == "get_attr" or (n.op == "call_function" and _from_constants(n)) for n in inputs)


def _install(work: Work, target: str, nodes: list[fx.Node], pinned: bool) -> list[str]:
    """Put the folded layers of one module's calls where it was, or beside it."""
    groups: list[tuple[Layer, list[fx.Node]]] = []
    unchanged = pinned
    for node in nodes:
        layer = work.layers.get(node)
        if layer is None or not layer.changed:
            unchanged = True
            continue
        for other, members in groups:
            if _equal(layer, other):
                members.append(node)
                break
        else:
            groups.append((layer, [node]))
    cloned = []
    for place, (layer, members) in enumerate(groups):
        name = target
        if unchanged or place:
            name = free_name(work.root, f"{target}_1".replace(".", "_"))
            cloned.append(f"{target} as {name}")
        _put(work.root, name, layer.final())
        for node in members:
            node.target = name
    return cloned


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    root.get_submodule(parent)._modules[last] = module


def _install_function(work: Work, node: fx.Node, layer: Layer) -> None:
    """A layer that was called as a function becomes a module, named after its weight."""
    wanted = work.name(node)
    holder: Any = None
    with contextlib.suppress(AttributeError):
        holder = work.root.get_submodule(wanted)
    others = [n for n in work.graph.nodes if n.op == "get_attr" and str(n.target).startswith(f"{wanted}.")]
    readers = {u for n in others for u in n.users}
    own = holder is not None and readers <= {node} and not list(holder.children())
    name = wanted if own else free_name(work.root, wanted.replace(".", "_"))
    if own:
        work.root.get_submodule(wanted.rpartition(".")[0])._modules[wanted.rpartition(".")[2]] = layer.final()
    else:
        work.root.add_submodule(name, layer.final())
    with work.graph.inserting_before(node):
        put = work.graph.call_module(name, (node.args[0],))
    put.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
    node.replace_all_uses_with(put)
    work.graph.erase_node(node)
    work.values[put] = work.values[node]
    work.layers[put] = work.layers.pop(node)
    for gone in others:
        if own and not gone.users:
            work.graph.erase_node(gone)


def _buffer(work: Work, name: str, value: Tensor, like: Tensor) -> fx.Node:
    name = free_name(work.root, name.replace(".", "_"))
    work.root.register_buffer(name, value.to(like.dtype).to(like.device))
    return work.graph.get_attr(name)


def _write_padding(
    work: Work, node: fx.Node, edges: Tensor, pads: list[tuple[int, int]], channel: int, reader: fx.Node | None
) -> Any:
    """Pad each channel with its own value, axis by axis, in plain functions; sizes stay free."""
    source: Any = node.args[0]
    like = work.values[source]
    ndim = like.ndim
    shape = [1] * ndim
    shape[channel] = -1
    graph = work.graph
    with graph.inserting_before(node):
        edge = _buffer(
            work, f"{node.target if node.op == 'call_module' else node.name}_edge", edges.reshape(shape), like
        )
        now = source
        for axis, (low, high) in enumerate(pads, start=ndim - len(pads)):
            if not low and not high:
                continue
            first = graph.call_function(torch.narrow, (now, axis, 0, 1))
            border = graph.call_function(torch.add, (graph.call_function(torch.zeros_like, (first,)), edge))
            now = graph.call_function(torch.cat, ([border] * low + [now] + [border] * high, axis))
    if reader is not None:
        reader.args = (now,)
    return now


def _write_scale(work: Work, node: fx.Node) -> None:
    """A norm that took in another: a multiplication and an addition."""
    norm, source = work.norms[node], node.args[0]
    like = work.values[node]
    shape = [1] * like.ndim
    shape[norm.channel] = -1
    with work.graph.inserting_before(node):
        scale = _buffer(work, f"{node.name}_scale", norm.scale.reshape(shape), like)
        shift = _buffer(work, f"{node.name}_shift", norm.shift.reshape(shape), like)
        put = work.graph.call_function(torch.add, (work.graph.call_function(torch.mul, (source, scale)), shift))
    node.replace_all_uses_with(put)
    work.graph.erase_node(node)


def _plain_left(work: Work) -> None:
    """evenly's own layers that are left become torch's; their activation stays the call that it became."""
    split = {str(norm.target) for norm in work.split.values()}
    for target in _targets(work):
        module = work.root.get_submodule(target)
        if norms.is_evenly(type(module)):
            bare = target in split and getattr(module, "activation", None) is not None
            if bare:
                module.activation = None  # type: ignore[assignment]  # the copy's; it is a call of its own
            _put(work.root, target, norms.plain(module))


def attach(model: nn.Module, certificate: dict[str, Any]) -> nn.Module:
    """Give the model its certificate, which stays through pickling and copying."""
    if isinstance(model, fx.GraphModule):
        model.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"certificate": certificate}
    model.certificate = certificate  # type: ignore[assignment]
    return model
