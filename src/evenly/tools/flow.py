"""What a block's forward does with its tensors: a graph, or the reason why it cannot be known.

The forward is run once on stand-ins (torch.fx), every child a leaf. What a trace cannot show is
refused, never guessed: a branch on the input or on ``training``, ``no_grad``, autocast,
checkpointing, autograd functions, writing to the block. Plain settings that were read
(``self.stride``) come with their values, so that whoever uses the graph can see whether they
still hold.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from evenly.tools.follow import is_tensor
from evenly.tools.stand import Unreadable, is_stand, stand_for

__all__ = ["Flow", "Unreadable", "read"]

# What may be read off a block: values that cannot change without being replaced.
_PLAIN = (NoneType, bool, int, float, str, torch.dtype, torch.device, FunctionType, BuiltinFunctionType)


class Flow(NamedTuple):
    """The data flow of one block.

    Args:
        graph: its forward; every child it calls is one ``call_module`` node.
        inputs: how many tensors the forward takes.
        settings: the plain attributes that it read, with their values.
    """

    graph: fx.Graph
    inputs: int
    settings: tuple[tuple[str, Any], ...]


def read(block: nn.Module) -> Flow:
    """The data flow of ``block`` when it is called with tensors alone.

    Raises:
        Unreadable: it cannot be known; the message says why.
    """
    cls = type(block)
    if "type" in getattr(getattr(cls.forward, "__code__", None), "co_names", ()):
        raise Unreadable("its forward asks for a type")  # a stand-in's is another
    if isinstance(block, (fx.GraphModule, torch.jit.ScriptModule)):
        raise Unreadable(f"is a {cls.__name__}, made by a compiler")
    if "forward" in vars(block):
        raise Unreadable("its forward was replaced on the instance")
    inputs = _tensors_taken(cls)
    settings: dict[str, Any] = {}
    try:
        with _no_autograd_functions(), _no_random_numbers():
            graph = _Tracer().trace(_probe(block, inputs, settings))
    except Unreadable:
        raise
    except fx.proxy.TraceError:
        raise Unreadable("its forward branches on its input") from None
    except Exception as error:
        raise Unreadable(f"its forward cannot be traced ({type(error).__name__}: {error})".split("\n")[0]) from None
    for name, value in settings.items():
        if name == "training":
            raise Unreadable("its forward reads self.training")
        settings[name] = snapshot(value)
        if not _is_plain(settings[name]):
            raise Unreadable(f"its forward reads self.{name}, a {type(value).__name__}")
    return Flow(graph, inputs, tuple(settings.items()))


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def snapshot(value: Any) -> Any:
    """A setting as it can be kept and compared: lists inside tuples of settings as tuples."""
    if isinstance(value, tuple) and not all(map(_is_plain, value)):
        return tuple(tuple(item) if type(item) is list else item for item in value)
    return value


def _tensors_taken(cls: type[nn.Module]) -> int:
    parameters = list(signature(cls.forward).parameters.values())[1:]
    stars = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)  # read when empty; the guard sees to it
    required = [p for p in parameters if p.default is Parameter.empty and p.kind not in stars]
    if not required or any(
        p.kind not in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for p in required
    ):
        raise Unreadable("its forward takes no fixed number of tensors")
    return len(required)


def _probe(block: nn.Module, inputs: int, settings: dict[str, Any]) -> nn.Module:
    """A stand-in for ``block`` with the same children, which notes what is read and refuses to be written."""
    cls, own = type(block), vars(block).keys() - (vars(nn.Module()).keys() - {"training"})
    forward: Any = cls.forward
    state = {"running": False}

    def __getattribute__(self: nn.Module, name: str) -> Any:  # noqa: N807
        value = cls.__getattribute__(self, name)
        if state["running"] and name in own:
            settings[name] = value
        return value

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        raise Unreadable(f"its forward writes self.{name}")

    def run(self: nn.Module, *tensors: Any) -> Any:
        state["running"] = True
        result = forward(self, *tensors)
        state["running"] = False
        return result

    # The tracer counts the arguments of the function it is given, so it gets one with exactly these.
    names = ", ".join(f"x{place}" for place in range(inputs))
    traced = eval(f"lambda self, {names}: run(self, {names})", {"run": run})
    members = {"__getattribute__": __getattribute__, "__setattr__": __setattr__, "forward": traced}
    probe: nn.Module = object.__new__(type(cls.__name__, (cls,), members))
    copies = {
        name: dict(value) for name, value in vars(block).items() if name in ("_parameters", "_buffers", "_modules")
    }
    vars(probe).update({**vars(block), **copies})
    return probe


class _Tracer(fx.Tracer):
    """Children are leaves; operations are noted only in the state in which the trace began."""

    proxy_buffer_attributes = True  # else ``self.calls.add_(1)`` would count here, and never again

    def __init__(self) -> None:
        # By default the functions of `math` are replaced while tracing, for everyone in the process.
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self._state = _state()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> Any:
        return stand_for(node, self, is_tensor(node, self.root))

    def create_arg(self, a: Any) -> Any:
        return a.node if is_stand(a) else super().create_arg(a)

    def create_proxy(self, *arguments: Any, **named: Any) -> fx.Proxy:
        if _state() != self._state:
            raise Unreadable("its forward computes under no_grad, autocast or checkpointing")
        return super().create_proxy(*arguments, **named)


def _state() -> tuple[Any, ...]:
    """What a graph cannot hold: the modes under which an operation would run."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch._C._autograd._top_saved_tensors_default_hooks(False),
    )


@contextmanager
def _no_autograd_functions() -> Iterator[None]:
    """Refuse ``torch.autograd.Function``: on stand-ins its forward would run without its backward."""
    original = vars(torch.autograd.Function)["apply"]

    def refuse(cls: type, *arguments: Any, **named: Any) -> Any:
        raise Unreadable(f"its forward uses the autograd function {cls.__name__}")

    setattr(torch.autograd.Function, "apply", classmethod(refuse))  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.autograd.Function, "apply", original)  # noqa: B010


@contextmanager
def _no_random_numbers() -> Iterator[None]:
    """Refuse what draws numbers while it is traced, and leave the generators where they were."""
    before, own = torch.get_rng_state(), random.getstate()
    yield
    drawn = not torch.equal(torch.get_rng_state(), before) or random.getstate() != own
    if drawn:
        torch.set_rng_state(before)
        random.setstate(own)
        raise Unreadable("its forward draws random numbers")
