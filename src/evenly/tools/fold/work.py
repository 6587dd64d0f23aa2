"""The graph under work: which call is a layer, which a norm, what the example gave at each call."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from evenly.tools.fold import calls, norms
from evenly.tools.fold.layers import CONVOLUTIONS, TRANSPOSED, Layer
from evenly.tools.fold.norms import Norm, Refused
from evenly.tools.fold.trace import Example, Program

_FUNCTIONS: dict[str, Any] = {
    **{f"conv{k + 1}d": cls for k, cls in enumerate(CONVOLUTIONS)},
    **{f"conv_transpose{k + 1}d": cls for k, cls in enumerate(TRANSPOSED)},
    "linear": nn.Linear,
}
_DIRECT = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


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
            records.pop(node, None)  # type: ignore[attr-defined]
        self.composed.discard(node)


def begin(program: Program, example: Example) -> Work:
    """Read the graph: in-place calls made plain, the example run, layers and norms recorded."""
    work = Work(program)
    _order_writes(work)
    _run(work, example)
    for node in list(work.graph.nodes):
        _record(work, node)
    work.calls.update(str(n.target) for n in work.graph.nodes if n.op == "call_module")
    return work


def _order_writes(work: Work) -> None:
    """Whoever reads a value after it was written in place reads the writer's result; views are left alone."""
    order = {node: place for place, node in enumerate(work.graph.nodes)}
    for node in work.graph.nodes:
        target = calls.writes(node, work.root)
        if target is None:
            continue
        family = _family(target)
        later = {m for m in family if any(order[u] > order[node] for u in m.users if u is not node)}
        if later - {target} or (later and target.op == "get_attr"):
            work.unsafe |= family | {node}
        if calls.short(node) == "setitem":
            work.unsafe |= family | {node}
            continue
        target.replace_all_uses_with(node, lambda user, at=order[node]: order[user] > at)


def _family(node: fx.Node) -> set[fx.Node]:
    """All calls whose values may share memory with ``node``'s."""
    root = node
    while root.args and isinstance(root.args[0], fx.Node) and _is_view(root):
        root = root.args[0]
    family, waiting = {root}, [root]
    while waiting:
        for user in waiting.pop().users:
            if _is_view(user) and user not in family:
                family.add(user)
                waiting.append(user)
    return family


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_module":
        return "latten" in str(node.meta.get("class", ""))
    return calls.short(node) in calls.VIEWS


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps what each call gave, before anybody writes over it."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.root, garbage_collect_values=False)
        self.work = work

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        written = any(calls.writes(user, self.work.root) is n for user in n.users)
        self.work.values[n] = value.clone() if written and isinstance(value, Tensor) else value
        return value


def _run(work: Work, example: Example) -> None:
    for node in work.graph.nodes:
        if node.op == "call_module":
            node.meta["class"] = type(work.root.get_submodule(str(node.target))).__name__
    places = [n for n in work.graph.nodes if n.op == "placeholder"]
    if work.program.traced:
        given = list(example.args)
        for node in places[len(given) :]:
            given.append(example.kwargs.get(str(node.target), node.args[0] if node.args else None))
    else:
        given = torch.utils._pytree.tree_leaves((example.args, dict(example.kwargs)))
    given = [g.clone() if isinstance(g, Tensor) else g for g in given]
    with torch.no_grad():
        _Recorder(work).run(*given, enable_io_processing=False)


def _record(work: Work, node: fx.Node) -> None:
    try:
        if node.op == "call_module" and len(node.args) == 1 and isinstance(node.args[0], fx.Node):
            module = work.root.get_submodule(str(node.target))
            layer = Layer.of(module) if not node.kwargs else None
            if layer is not None:
                work.layers[node] = layer
                return
            norm = norms.of(module)
            if norm is not None:
                work.norms[node] = norm._replace(activation=None)
                _split(work, node, norm.activation)
        elif node.op == "call_function":
            _record_function(work, node)
    except Refused as reason:
        work.unread[node] = str(reason)


def _split(work: Work, node: fx.Node, activation: nn.Module | None) -> None:
    """A norm's own residual and activation become calls of their own."""
    extras = dict(node.kwargs)
    residual = extras.pop("residual", None)
    extras.pop("mask", None)  # given statistics do not ask which elements count
    if extras:
        del work.norms[node]
        raise Refused(f"it is called with {', '.join(extras)}")
    raw = work.values[node]
    last = node
    shift = work.norms[node]
    x = work.values[node.args[0]]
    shape = [1] * x.ndim
    shape[shift.channel] = -1
    plain = (x.double().cpu() * shift.scale.reshape(shape) + shift.shift.reshape(shape)).to(raw.dtype).to(raw.device)
    node.kwargs = {}
    with work.graph.inserting_after(node):
        if residual is not None:
            last = work.graph.call_function(torch.add, (node, residual))
            work.values[last] = plain + work.values[residual]
            work.split[last] = node
    if activation is not None:
        name = free_name(work.root, f"{node.target}_activation".replace(".", "_"))
        work.root.add_submodule(name, activation)
        with work.graph.inserting_after(last):
            after = work.graph.call_module(name, (last,))
        work.values[after], work.split[after] = raw, node
        last = after
    if last is not node:
        node.replace_all_uses_with(last, lambda user: user is not last and work.split.get(user) is not node)
        work.values[node] = plain


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


def _record_function(work: Work, node: fx.Node) -> None:
    """A convolution, linear layer or norm that is called as a function of constants."""
    name = calls.short(node)
    if name not in _FUNCTIONS and name not in ("batch_norm", *_ARITHMETIC):
        return
    if node.args and constant(work, node.args[0]) is not None:
        return  # weights that are standardised, not activations
    home = getattr(node.target, "__module__", "") or ""
    if not (home.startswith(("torch", "_operator")) or isinstance(node.target, torch._ops.OpOverload)):
        return
    if name in _FUNCTIONS:
        names = _TRANSPOSED if "transpose" in name else _DIRECT
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        weight, bias = (constant(work, given.get(k)) for k in ("weight", "bias"))
        if weight is not None and (bias is not None or given.get("bias") is None):
            work.layers[node] = _layer(_FUNCTIONS[name], weight, bias, given)
    elif name == "batch_norm":
        exported = isinstance(node.target, torch._ops.OpOverload)
        names = ("input", "weight", "bias", "mean", "var", "training") if exported else (
            "input", "mean", "var", "weight", "bias", "training")  # fmt: skip
        names += ("momentum", "eps")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        given.setdefault("mean", given.get("running_mean"))
        given.setdefault("var", given.get("running_var"))
        if given.get("training", False) or given.get("mean") is None:
            raise Refused("it measures its input (training, or no running statistics)")
        mean, var, weight, bias = (constant(work, given.get(k)) for k in ("mean", "var", "weight", "bias"))
        if mean is None or var is None:
            raise Refused("its statistics are computed")
        work.norms[node] = Norm(*norms.scale_and_shift(mean, var, given.get("eps", 1e-5), weight, bias))
    elif not work.program.traced:
        _record_arithmetic(work, node, name)


_ARITHMETIC = ("mul", "mul_", "multiply", "add", "add_", "sub", "sub_", "subtract", "div", "div_", "divide")


def _record_arithmetic(work: Work, node: fx.Node, name: str) -> None:
    """A constant per channel that an exported program multiplies by or adds."""
    if len(node.args) != 2 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return
    by, value, x = constant(work, node.args[1]), work.values.get(node), work.values.get(node.args[0])
    if by is None or not isinstance(value, Tensor) or not isinstance(x, Tensor) or x.shape != value.shape:
        return
    shape = [1] * (x.ndim - by.ndim) + list(by.shape)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if len(axes) != 1 or not by.is_floating_point() or axes[0] == 0 or constant(work, node.args[0]) is not None:
        return
    by = by.detach().cpu().double().flatten()
    zero, one, word = torch.zeros_like(by), torch.ones_like(by), name.rstrip("_")
    scale = by if word in ("mul", "multiply") else 1 / by if word in ("div", "divide") else one
    shift = by if word == "add" else -by if word in ("sub", "subtract") else zero
    if not (scale.isfinite().all() and shift.isfinite().all()):
        return
    work.arithmetic.add(node)
    before: fx.Node = node.args[0]
    earlier = work.norms.get(before)
    if before in work.arithmetic and earlier is not None and len(before.users) == 1 and earlier.channel == axes[0]:
        scale, shift = scale * earlier.scale, scale * earlier.shift + shift
        node.args = (before.args[0], node.args[1])
        work.erase(before)
        work.composed.add(node)
    work.norms[node] = Norm(scale, shift, axes[0])


_RANDOM = ("rand", "dropout", "bernoulli", "normal", "poisson", "multinomial")


def constant(work: Work, argument: Any) -> Tensor | None:
    """The value of what depends on weights and buffers alone; None for everything else."""
    if not isinstance(argument, fx.Node):
        return None
    value = work.values.get(argument)
    return value if isinstance(value, Tensor) and _is_constant(argument, work) else None


def _is_constant(node: fx.Node, work: Work) -> bool:
    if node.op == "get_attr":
        return node not in work.unsafe
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes or node in work.unsafe:
        return False
    if any(word in calls.short(node) for word in _RANDOM):
        return False
    return all(_is_constant(n, work) for n in node.all_input_nodes)


def _layer(cls: Any, weight: Tensor, bias: Tensor | None, given: dict[str, Any]) -> Layer:
    rank = weight.ndim - 2
    like = nn.Module()
    padding: Any = None
    if cls is not nn.Linear:
        for name, default in (("stride", 1), ("dilation", 1), ("output_padding", 0)):
            setattr(like, name, _each(given.get(name, default), rank))
        like.groups, like.padding_mode = given.get("groups", 1), "zeros"  # type: ignore[assignment]
        padding = given.get("padding", 0)
        padding = padding if isinstance(padding, str) else _each(padding, rank)
    wide = None if bias is None else bias.detach().cpu().double()
    return Layer(like, cls, weight.detach().cpu().double(), wide, weight.dtype, weight.device, padding)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank if len(value) == 1 else 1)


def copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A layer that lets a fold pass, in the type of a trial."""
    if not any(True for _ in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).cpu().to(dtype)
