"""From a model to its data flow over call sites: torch.fx where it can, an exported program where it cannot.

Every call is one node: a layer that is called twice is two nodes. The trace is run on the example
and compared with the model, so a trace that is not the model is never used.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from evenly.tools import walk
from evenly.tools.flow import Unreadable
from evenly.tools.fold import norms

_IN_PLACE = ("iadd", "isub", "imul", "itruediv")


class Program(NamedTuple):
    """A model's data flow.

    Args:
        graph: the calls, over `root`'s modules.
        root: the copy that the calls' names refer to.
        traced: whether torch.fx read the model's own modules (else: an exported program).
    """

    graph: fx.GraphModule
    root: nn.Module
    traced: bool


class Example(NamedTuple):
    """Inputs by position and by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Example:
        """A tensor is the one argument, a tuple or list the arguments, a mapping the arguments by name."""
        if isinstance(inputs, Mapping):
            return cls((), inputs)
        return cls(tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else cls((inputs,), {})

    def run(self, model: Any) -> Any:
        """What ``model`` answers, without gradients."""
        with torch.no_grad():
            return model(*_copied(self.args), **_copied(dict(self.kwargs)))


def _copied(value: Any) -> Any:
    """Tensors copied, because a model may write to its input."""
    return torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, value)


def read(model: nn.Module | torch.export.ExportedProgram, example: Example) -> Program:
    """The data flow of ``model``, which must be a copy that may be kept.

    Raises:
        ValueError: it cannot be traced; the message names the part and what to pass instead.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return _of_export(model)
    expected = example.run(model)
    tracer = _Tracer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(model)
        graph._tracer_cls = None  # a pickle must not ask for evenly
        found = fx.GraphModule(model, graph, type(model).__name__)
        if same(example.run(found), expected):
            return Program(found, model, True)
        why = "its trace computes something else"
    except Exception as error:
        why = f"{type(error).__name__}: {error}".split("\n")[0]
    part = ".".join(tracer.entered[-1:]) or "the model"
    try:
        program = _of_export(_exported(model, example))
        if same(example.run(program.graph), expected):
            return program
        beyond = "its exported program computes something else"
    except Exception as error:
        beyond = f"{type(error).__name__}: {error}".split("\n")[0]
    raise ValueError(
        f"fold cannot trace {part} ({type(_part(model, part)).__name__}): {why[:200]}; torch.export: {beyond[:200]}. "
        "Pass a torch.export.ExportedProgram of the model, or its traceable part with example inputs for that part."
    )


def _part(model: nn.Module, name: str) -> nn.Module:
    return model if name == "the model" else model.get_submodule(name)


def same(one: Any, other: Any) -> bool:
    """Whether two outputs have the same tensors, up to rounding of their type."""
    first, second = tensors(one), tensors(other)
    return len(first) == len(second) and all(
        a.shape == b.shape and a.dtype == b.dtype and _close(a, b) for a, b in zip(first, second, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    if not a.numel():
        return True
    tolerance = 100 * torch.finfo(a.dtype).eps * float(b.detach().double().abs().nan_to_num(0, 0, 0).max() or 1.0)
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=tolerance, equal_nan=True)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in an output of any structure."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors(v)]
    return []


class _Proxy(fx.Proxy):
    """A stand-in whose ``+=`` stays an ``+=``, so that what is written in place is known."""


def _in_place(operation: Any) -> Any:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Layers are leaves: torch.nn's, evenly's, and whatever keeps running statistics."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # not math's functions, for everyone
        self.entered: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        cls: type = type(m).__mro__[1] if nn.utils.parametrize.is_parametrized(m) else type(m)
        if norms.is_given(m) or norms.is_evenly(cls):
            return True
        ours = cls.__module__.startswith(("torch.nn", "torch.ao.nn"))
        return ours and not isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.entered.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()  # stays where an error left it
        return result


def _exported(model: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """The model as an exported program, with sizes free where they can be."""
    auto = torch.export.Dim.AUTO
    free = torch.utils._pytree.tree_map(
        lambda v: dict.fromkeys(range(v.ndim), auto) if isinstance(v, Tensor) else None,
        (*example.args, *example.kwargs.values()),
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)  # its error comes as an exception, too
        try:
            return torch.export.export(model, example.args, dict(example.kwargs), dynamic_shapes=free)
        except Exception:
            return torch.export.export(model, example.args, dict(example.kwargs))
        finally:
            logging.disable(logging.NOTSET)


def _of_export(program: torch.export.ExportedProgram) -> Program:
    """The program's module, without its assertions about types (its guards on sizes stay)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = program.module()
    assert isinstance(found, fx.GraphModule)
    for node in list(found.graph.nodes):
        if node.op == "call_function" and "_assert_tensor_metadata" in str(node.target):
            found.graph.erase_node(node)
    return Program(found, found, False)


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile's and the parallel wrappers."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def unread(program: Program, model: nn.Module) -> dict[str, str]:
    """The norms that no call reaches, with the reason: inside a layer that is a leaf, or never called."""
    called = {str(n.target) for n in program.graph.graph.nodes if n.op == "call_module"}
    called |= {str(n.target).rpartition(".")[0] for n in program.graph.graph.nodes if n.op == "get_attr"}
    missed = {}
    for name, _ in walk.batch_norms(model):
        if program.traced and name not in called:
            inside = next((c for c in called if name.startswith(f"{c}.")), None)
            missed[name] = f"inside {inside}, which is not read" if inside else "the example input does not reach it"
    return missed


__all__ = ["Example", "Program", "Unreadable", "read", "same", "tensors", "unread", "unwrapped"]
