"""Reading a graph: in-place calls made plain, the example run, every layer and norm recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from evenly.tools.fold import calls, norms
from evenly.tools.fold.layers import CONVOLUTIONS, TRANSPOSED, Layer
from evenly.tools.fold.norms import Norm, Refused
from evenly.tools.fold.trace import Example, Program
from evenly.tools.fold.work import Work, free_name

_FUNCTIONS: dict[str, Any] = {
    **{f"conv{k + 1}d": cls for k, cls in enumerate(CONVOLUTIONS)},
    **{f"conv_transpose{k + 1}d": cls for k, cls in enumerate(TRANSPOSED)},
    "linear": nn.Linear,
}
_DIRECT = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def begin(program: Program, example: Example) -> Work:
    """Read a program on an example."""
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
        later = {user for user in target.users if order[user] > order[node]}
        target.replace_all_uses_with(node, later.__contains__)


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
    first: Any = node.args[0]
    x = work.values[first]
    shape = [1] * x.ndim
    shape[shift.channel] = -1
    plain = (x.double().cpu() * shift.scale.reshape(shape) + shift.shift.reshape(shape)).to(raw.dtype).to(raw.device)
    node.kwargs = {}
    with work.graph.inserting_after(node):
        if residual is not None:
            last = work.graph.call_function(torch.add, (node, residual))
            work.values[last] = plain + work.values[residual]  # type: ignore[index]
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
        order: tuple[str, ...] = ("input", "weight", "bias", "mean", "var", "training") if exported else (
            "input", "mean", "var", "weight", "bias", "training")  # fmt: skip
        given = {**dict(zip((*order, "momentum", "eps"), node.args, strict=False)), **node.kwargs}
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
