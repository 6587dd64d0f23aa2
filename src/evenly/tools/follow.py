"""What follows a norm in a block's data flow and can be taken into it: a residual, an activation."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as every

from evenly.core.activation import IDENTITY, Activation

_MODULES: dict[type[nn.Module], tuple[str, str | None]] = {
    nn.ReLU: ("relu", None),
    nn.ReLU6: ("relu6", None),
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.ELU: ("elu", "alpha"),
    nn.SiLU: ("silu", None),
    nn.GELU: ("gelu", None),
}
# By what they are called with: torch writes each of them in several ways.
_FUNCTIONS: dict[Any, tuple[str, str | None]] = {
    F.relu: ("relu", None), F.relu_: ("relu", None), torch.relu: ("relu", None), torch.relu_: ("relu", None),
    "relu": ("relu", None), "relu_": ("relu", None), Tensor.relu: ("relu", None), Tensor.relu_: ("relu", None),
    F.relu6: ("relu6", None), F.silu: ("silu", None), F.gelu: ("gelu", None),
    F.leaky_relu: ("leaky_relu", "negative_slope"), F.leaky_relu_: ("leaky_relu", "negative_slope"),
    F.elu: ("elu", "alpha"), F.elu_: ("elu", "alpha"),
}  # fmt: skip
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_OURS = ("evenly.nn.batchnorm", "evenly.nn.instancenorm", "evenly.nn.groupnorm", "evenly.nn.layernorm")
_FRESH = (nn.modules.conv._ConvNd, nn.Linear)  # their output is a new tensor that nobody else holds


# Those of torch's modules that return one tensor, whatever they were set to.
_ONE_TENSOR = tuple(
    f"torch.nn.modules.{name}"
    for name in ("batchnorm", "conv", "dropout", "instancenorm", "linear", "normalization", "padding", "pixelshuffle")
)
_ARITHMETIC = {getattr(operator, n) for n in ("add", "sub", "mul", "truediv", "neg", "matmul", "iadd", "isub", "imul")}


def is_tensor(node: fx.Node, root: nn.Module) -> bool:
    """Whether the value of ``node`` is a tensor for certain; placeholders are, by a fused forward's guard."""
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op == "call_module":
        child = root.get_submodule(str(node.target))
        return type(child) in _MODULES or type(child).__module__ in _ONE_TENSOR or type(child).__module__ in _OURS
    if node.target in _FUNCTIONS:
        return True
    return node.target in _ARITHMETIC and any(isinstance(a, fx.Node) and is_tensor(a, root) for a in node.args)


_CALL = nn.Module.__call__


class Followers(NamedTuple):
    """What a norm can take on.

    Args:
        activation: or None.
        residual: the node that is added, or None.
        at: the node in whose place the fused call goes: there all its inputs are known.
        last: the node whose value the fused call gives.
        nodes: what falls away, the last first, the norm last.
        modules: children that are no longer called, and the activation that each stands for.
    """

    activation: Activation | None
    residual: fx.Node | None
    at: fx.Node
    last: fx.Node
    nodes: list[fx.Node]
    modules: dict[str, Activation]


def followers(norm: fx.Node, block: nn.Module) -> Followers | None:
    """What follows the node ``norm`` in ``block``'s graph; None where there is nothing to take.

    Everything in the chain must have exactly one user, so that nobody else sees a value that will
    no longer be computed.
    """
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        return None
    chain: list[fx.Node] = [norm]
    modules: dict[str, Activation] = {}
    _pass_identities(chain, modules, block)
    residual, at = None, norm
    if (add := _only_user(chain[-1])) is not None:
        residual = _added(add, chain[-1])
        if residual is not None and _may_move(norm, add, block):
            chain.append(add)
            at = add
            _pass_identities(chain, modules, block)
        else:
            residual = None
    activation = None
    if (user := _only_user(chain[-1])) is not None:
        activation = activation_of(user, block)
        if activation is not None:
            chain.append(user)
            if user.op == "call_module":
                modules[str(user.target)] = activation
    if activation is None and residual is None:
        return None
    return Followers(activation, residual, at, chain[-1], chain[::-1], modules)


def activation_of(node: fx.Node, block: nn.Module) -> Activation | None:
    """The activation that a node applies to one tensor, or None."""
    if node.op == "call_module":
        found = stands_for(block.get_submodule(str(node.target)))
        alone = len(node.args) == 1 and not node.kwargs
        return found if alone and found is not None and found.name is not None else None
    if node.op not in ("call_function", "call_method") or node.target not in _FUNCTIONS:
        return None
    name, parameter = _FUNCTIONS[node.target]
    options = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
    arguments = node.args[1:]
    if parameter is None:
        # relu(x), relu(x, True); gelu's approximation is another function.
        return (
            Activation.of(name)
            if options in ({}, {"approximate": "none"}) and set(arguments) <= {True, False}
            else None
        )
    if set(options) - {parameter} or len(arguments) > 1:
        return None
    values = [float(v) for v in (*arguments, *options.values()) if isinstance(v, (int, float))]
    return Activation.of(name, tuple(values)) if len(values) == len(arguments) + len(options) else None


def stands_for(module: nn.Module) -> Activation | None:
    """The activation that calling ``module`` applies; None for any other module, and where somebody listens to it."""
    if is_heard(module) or _FORWARDS.get(type(module)) is not type(module).forward:
        return None
    if type(module) is nn.Identity:
        return IDENTITY
    if getattr(module, "approximate", "none") != "none":
        return None
    name, parameter = _MODULES[type(module)]
    return Activation.of(name, () if parameter is None else (getattr(module, parameter),))


def is_heard(module: nn.Module) -> bool:
    """Whether anybody listens to calls of ``module`` itself, or has put something in their place."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or type(module).__call__ is not _CALL
    )


def all_are_heard() -> bool:
    """Whether anybody listens to calls of every module."""
    return bool(
        every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )


def pristine(cls: type[nn.Module]) -> bool:
    """Whether a class of torch.nn's or ours has the forward that it came with."""
    home: str = getattr(cls.forward, "__globals__", {}).get("__name__", "")
    return home.startswith(("torch.nn.modules.", "evenly.nn."))


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _pass_identities(chain: list[fx.Node], modules: dict[str, Activation], block: nn.Module) -> None:
    """Go on past ``nn.Identity``, which blocks use for what is switched off."""
    while (user := _only_user(chain[-1])) is not None and user.op == "call_module":
        name = str(user.target)
        if len(user.args) != 1 or user.kwargs or stands_for(block.get_submodule(name)) != IDENTITY:
            return
        chain.append(user)
        modules[name] = IDENTITY


def _added(add: fx.Node, value: fx.Node) -> fx.Node | None:
    """The other operand, where ``add`` is ``value + other`` and does not write into ``other``."""
    if add.op not in ("call_function", "call_method") or add.target not in _ADDS or len(add.args) != 2 or add.kwargs:
        return None
    left, right = add.args
    other = right if left is value else left
    into_left = add.target in (operator.iadd, "add_")
    if not isinstance(other, fx.Node) or other is value or (into_left and left is not value):
        return None
    return other


def _may_move(norm: fx.Node, to: fx.Node, block: nn.Module) -> bool:
    """Whether the norm may be called as late as ``to``: nothing between them can change its input."""
    if norm.next is to:
        return True
    made = norm.args[0]
    assert isinstance(made, fx.Node)
    fresh = made.op == "call_module" and isinstance(block.get_submodule(str(made.target)), _FRESH)
    return fresh and len(made.users) == 1


# What each class computes; another forward on the class is somebody's replacement.
_KNOWN: tuple[Any, ...] = (*_MODULES, nn.Identity)
_FORWARDS: dict[Any, Any] = {cls: cls.forward for cls in _KNOWN if pristine(cls)}
