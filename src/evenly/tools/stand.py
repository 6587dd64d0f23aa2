"""Stand-ins for what flows through a block while it is traced; each says truly what it is.

torch's own parser (C++) asks ``isinstance(value, Tensor)`` and then reads memory: a stand-in that
merely claims to be a tensor ends the process. So a tensor stands for a tensor: a real one, without
data, which notes what is done with it and refuses every operation that nothing noted. All else
(sizes, lists, what a child returns) is stood for by a proxy that refuses to say what type it has,
so that nobody takes the wrong branch on it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.fx.graph import inplace_methods, magic_methods, reflectable_magic_methods


class Unreadable(Exception):  # noqa: N818  # not an error: the reason why a block is left alone
    """Why a block's data flow cannot be known."""


# What a tensor answers with a plain value, so that Python goes on by it.
_NUMBERS = ("__int__", "__float__", "__index__", "__complex__", "item", "tolist")
_TEXT = ("__format__", "__repr__", "__str__")
_MEMORY = ("numpy", "__array_interface__", "data_ptr", "storage", "untyped_storage")
_GRADIENTS = ("backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad")
_OBJECTS = ("__deepcopy__", "__reduce_ex__", "__reduce__")
_ASKS_VALUES = {
    "__bool__": "branches on its input",
    "__len__": "asks how long its input is",
    "__iter__": "goes through its input",
    "__contains__": "looks for a value in its input",
    "__reversed__": "goes through its input",
    "__setitem__": "writes into a tensor by index",
    "__array__": "hands a tensor to NumPy",
    "__dlpack__": "hands a tensor to another library",
    "__hash__": "uses a tensor as a key",
    **dict.fromkeys(_NUMBERS, "reads numbers of its input"),
    **dict.fromkeys(_TEXT, "makes text of its input"),
    **dict.fromkeys(_MEMORY, "reads its input's memory"),
    **dict.fromkeys(_GRADIENTS, "listens to gradients"),
    **dict.fromkeys(_OBJECTS, "copies its input as an object"),
}


def refuse(what: str) -> NoReturn:
    """Leave the block alone: its forward does ``what``."""
    raise Unreadable(f"its forward {what}")


class Value(fx.Proxy):
    """A stand-in for anything; what type it has is not known, and not said."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Refused: a guess would take one branch of an ``isinstance``, or crash torch's parser."""
        refuse("asks for the type of a size, or of what an operation returned")

    def __getattr__(self, name: str) -> Member:
        if name.startswith("__"):
            raise AttributeError(name)
        member: Member = Member(self, name)
        return member

    def __hash__(self) -> int:
        refuse("uses a size, or what an operation returned, as a key")

    def __format__(self, spec: str) -> str:
        refuse(_ASKS_VALUES["__format__"])

    __repr__ = __str__ = lambda self: refuse(_ASKS_VALUES["__str__"])

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(_ASKS_VALUES["__array__"])

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        refuse(_ASKS_VALUES["__setitem__"])

    @classmethod
    def __torch_function__(
        cls, orig_method: Any, types: Any, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _noted(orig_method, args or (), kwargs or {})


class Member(Value, fx.proxy.Attribute):
    """A stand-in for ``value.name``; a node of the graph only when it is used as a value."""

    __init__ = fx.proxy.Attribute.__init__
    node = fx.proxy.Attribute.node
    __call__ = fx.proxy.Attribute.__call__


class Tensed(Tensor):
    """A stand-in for a tensor: a real one of no elements that cannot be computed with."""

    node: fx.Node
    tracer: Any

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _noted(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, *rest: Any) -> Any:
        refuse(f"reaches {function} by a way that cannot be followed")

    def __hash__(self) -> int:
        refuse(_ASKS_VALUES["__hash__"])


def stand_for(node: fx.Node, tracer: Any, is_tensor: bool) -> Value | Tensed:
    """A stand-in for the value of ``node``."""
    if not is_tensor:
        return Value(node, tracer)
    made = torch.Tensor._make_wrapper_subclass(Tensed, (0,), dispatch_sizes_strides_policy="sizes")
    made.node, made.tracer = node, tracer
    stand: Tensed = made
    return stand


def is_stand(value: object) -> bool:
    """Whether a value is one of ours; asked without ``isinstance``, which a `Value` refuses."""
    return type(value) in (Value, Member, Tensed)


def _noted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The node for ``function(*args, **kwargs)``, written as torch.fx writes it."""
    tracer = _tracer((args, kwargs))
    name = getattr(function, "__name__", str(function))
    if name == "__get__":  # x.shape, x.device
        return tracer.create_proxy("call_function", getattr, (args[0], function.__self__.__name__), {})
    if name in ("__set__", "__delete__"):
        refuse(f"sets {function.__self__.__name__} of a tensor")
    if name in _ASKS_VALUES:
        refuse(_ASKS_VALUES[name])
    if torch.overrides.is_tensor_method_or_property(function):
        return tracer.create_proxy("call_method", name, args, kwargs)
    return tracer.create_proxy("call_function", function, args, kwargs)


def _tracer(values: Any) -> Any:
    """The tracer of the first stand-in among ``values``."""
    pending = [values]
    while pending:
        value = pending.pop()
        if is_stand(value):
            return value.tracer
        if isinstance(value, (tuple, list)):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, slice):
            pending.extend((value.start, value.stop, value.step))
    refuse("calls a function on nothing that can be followed")


def _operation(target: Any, flipped: bool = False) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        args = (*others, self) if flipped else (self, *others)
        return self.tracer.create_proxy("call_function", target, args, {})

    return method


def _give_operations() -> None:
    """Let tensors note operators as operators, and both kinds ``+=`` as ``+=``."""
    for name in (*magic_methods, "abs"):
        if hasattr(operator, name):
            setattr(Tensed, f"__{name.strip('_')}__", _operation(getattr(operator, name)))
    for name in set(reflectable_magic_methods) - {"getitem", "div"}:
        setattr(Tensed, f"__r{name.strip('_')}__", _operation(getattr(operator, name), flipped=True))
    for name in set(inplace_methods) - {"setitem"}:
        for cls in (Tensed, Value):
            setattr(cls, f"__{name}__", _operation(getattr(operator, name)))


_give_operations()
