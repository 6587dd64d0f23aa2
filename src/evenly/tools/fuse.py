"""Activation and residual taken into the norm before them, by giving a block a fused forward.

Only the smallest block that calls the norm is touched, and only its class changes: to a generated
subclass with another ``forward``. Its modules stay as they are, called or not. At every call the
fused forward first makes sure that all it was made from still holds (the same children and
settings, nobody listening on a norm or activation, tensors as inputs); otherwise the block's own
forward runs, so that hooks, tracers and later changes see what they always saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from evenly.backends.activations import apply_activation
from evenly.core.activation import IDENTITY, Activation
from evenly.nn import batchnorm, instancenorm, modules
from evenly.tools.flow import Flow, read, snapshot
from evenly.tools.follow import all_are_heard, followers, is_heard, pristine, stands_for

_NORMS: tuple[Any, ...] = (
    batchnorm.BatchNorm, batchnorm.BatchNorm1d, batchnorm.BatchNorm2d, batchnorm.BatchNorm3d, batchnorm.SyncBatchNorm,
    instancenorm.InstanceNorm1d, instancenorm.InstanceNorm2d, instancenorm.InstanceNorm3d,
    modules.GroupNorm, modules.LayerNorm, modules.RMSNorm,
)  # fmt: skip
# Exactly these take a residual and an activation with a call; somebody's subclass may have another forward.
_FORWARDS = {cls: cls.forward for cls in _NORMS if pristine(cls)}
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Plan:
    """A fused forward, and all it was made from.

    Args:
        source: its code, a function of the block and ``inputs`` tensors.
        names: the functions that the code names; modules by their name in quotes.
        inputs: how many tensors it takes.
        children: the names of the block's children.
        settings: the block's attributes that its forward reads, and their values.
        norms: the norms that take something on.
        absorbed: the modules that are no longer called, and the activation that each stands for.
    """

    source: str
    names: tuple[tuple[str, Any], ...]
    inputs: int
    children: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]
    norms: tuple[str, ...]
    absorbed: tuple[tuple[str, Activation], ...]

    def holds(self, block: nn.Module) -> bool:
        """Whether ``block`` is as it was when the plan was made, and nobody listens where nothing would be heard."""
        if all_are_heard() or _children(block) != self.children:
            return False
        own = vars(block)
        if any(
            name not in own or (own[name] is not value and snapshot(own[name]) != value)
            for name, value in self.settings
        ):
            return False
        if any(stands_for(_child(block, name)) != activation for name, activation in self.absorbed):
            return False
        return all(can_take(_child(block, name)) for name in self.norms)


def fuse(block: nn.Module) -> bool:
    """Give ``block`` a fused forward where something follows its norms; whether there was anything.

    Raises:
        Unreadable: its data flow cannot be known.
    """
    plan = _plan(block, read(block))
    if plan is not None:
        block.__class__ = _fused_class(type(block), plan)  # type: ignore[arg-type]  # a class is hashable
    return plan is not None


def unfuse(block: nn.Module) -> None:
    """Give ``block`` its own forward back; nothing where it was not fused."""
    original = fused_from(block)
    if original is not None:
        block.__class__ = original


def fused_from(block: nn.Module) -> type[nn.Module] | None:
    """The class that ``block`` had before `fuse`, or None."""
    found: tuple[type[nn.Module], Plan] | None = vars(type(block)).get("_fused_from")
    return found[0] if found else None


def can_take(module: nn.Module) -> bool:
    """Whether a norm is ours, has no activation of its own, and nobody listens to what comes out of it."""
    cls = type(module)
    return cls in _FORWARDS and cls.forward is _FORWARDS[cls] and module.activation is None and not is_heard(module)


def norm_then(norm: nn.Module, x: Tensor, residual: Tensor | None, name: str | None, args: tuple[float, ...]) -> Tensor:
    """``activation(norm(x) + residual)``, as one call where the residual is a tensor like ``x``.

    Args:
        norm: a layer of ours.
        x: its input.
        residual: added before the activation; of another shape or type it is added by torch, which broadcasts.
        name: of the activation, or None.
        args: its parameter, if it has one.
    """
    activation = Activation.of(name, args)
    if residual is None or (residual.shape == x.shape and residual.dtype == x.dtype):
        return _take(norm, x, residual, activation)
    return apply_activation(norm(x) + residual, activation)


def _take(norm: nn.Module, x: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    y: Tensor = norm(x, residual, activation=activation)
    return y


def _plan(block: nn.Module, flow: Flow) -> Plan | None:
    graph, norms, absorbed = flow.graph, [], {}
    for node in list(graph.nodes):
        if node.op != "call_module" or not can_take(block.get_submodule(node.target)):
            continue
        found = followers(node, block)
        if found is None:
            continue
        norms.append(node.target)
        absorbed.update(found.modules)
        with graph.inserting_before(found.at):
            norm = graph.get_attr(node.target)
            activation = found.activation or IDENTITY
            args = (activation.arg,) if activation.kind.parameters else ()
            arguments = (norm, node.args[0], found.residual, activation.name, args)
            fused = graph.call_function(norm_then, arguments)
        found.last.replace_all_uses_with(fused)
        for old in found.nodes:  # from the last to the first: each is free when its user is gone
            graph.erase_node(old)
    if not norms:
        return None
    code = graph.python_code("self")
    used = compile(code.src, "", "exec").co_consts[0].co_names
    names = tuple((name, _by_name(value)) for name, value in code.globals.items() if name in used)
    return Plan(
        code.src, names, flow.inputs, _children(block), flow.settings, tuple(norms), tuple(absorbed.items())
    )  # fmt: skip


@cache
def _fused_class(cls: Any, plan: Plan) -> type[nn.Module]:
    """``cls`` with ``plan``'s forward; one class for all blocks that are alike."""
    space = {name: _of_name(value) for name, value in plan.names}
    exec(compile(plan.source, f"<evenly: fused {cls.__qualname__}>", "exec"), space)
    forward = _guarded(cls, plan, space["forward"])

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:  # noqa: N807
        return _unpickled, (cls, plan), *cls.__reduce_ex__(self, protocol)[2:]

    members = {
        "__module__": cls.__module__, "__doc__": cls.__doc__, "_fused_from": (cls, plan),
        "forward": forward, "__reduce_ex__": __reduce_ex__,
    }  # fmt: skip
    return type(f"Fused{cls.__name__}", (cls,), members)


def _guarded(cls: type[nn.Module], plan: Plan, fused: Callable[..., Any]) -> Callable[..., Any]:
    """A forward with the signature of ``cls``'s: the fused one where ``plan`` holds, else the block's own."""
    original: Any = cls.forward
    parameters = list(signature(original).parameters.values())[1:]
    required = [p.name for p in parameters if p.default is Parameter.empty and p.kind in _POSITIONAL]
    space: dict[str, Any] = {
        "Tensor": Tensor, "fused": fused, "own": lambda: cls.forward, "original": original, "holds": plan.holds,
    }  # fmt: skip
    taken, passed, fits = ["self"], ["self"], [f"isinstance({name}, Tensor)" for name in required]
    for place, p in enumerate(parameters):
        stars = "*" if p.kind is Parameter.VAR_POSITIONAL else "**" if p.kind is Parameter.VAR_KEYWORD else ""
        if p.kind is Parameter.KEYWORD_ONLY and "*" not in taken and not any(t.startswith("*") for t in taken):
            taken.append("*")
        has_default = p.default is not Parameter.empty
        space[f"_default{place}"] = p.default
        taken.append(f"{stars}{p.name}" + (f"=_default{place}" if has_default else ""))
        passed.append(f"{p.name}={p.name}" if p.kind is Parameter.KEYWORD_ONLY else f"{stars}{p.name}")
        if has_default:
            fits.append(f"{p.name} is _default{place}")
        elif stars:
            fits.append(f"not {p.name}")
    lines = [
        f"def forward({', '.join(taken)}):",
        f"    if {' and '.join(fits)} and own() is original and holds(self):",
        f"        return fused(self, {', '.join(required)})",
        f"    return own()({', '.join(passed)})",
    ]
    exec(compile("\n".join(lines), f"<evenly: guard of {cls.__qualname__}>", "exec"), space)
    guarded: Callable[..., Any] = space["forward"]
    return guarded


def _unpickled(cls: type[nn.Module], plan: Plan) -> nn.Module:
    made = _fused_class(cls, plan)  # type: ignore[arg-type]
    return made.__new__(made)


def _child(block: nn.Module, name: str) -> nn.Module:
    """`get_submodule`, sooner for a direct child: a fused forward asks at every call."""
    return block._modules.get(name) or block.get_submodule(name)


def _children(block: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, child in block._modules.items() if child is not None)


def _by_name(value: Any) -> Any:
    """A module cannot be pickled; its name can."""
    return f"module {value.__name__}" if isinstance(value, ModuleType) else value


def _of_name(value: Any) -> Any:
    from importlib import import_module

    return import_module(value[7:]) if isinstance(value, str) and value.startswith("module ") else value
