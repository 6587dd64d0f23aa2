"""Pickles read without running anything.

A pickle is a small program: it names callables and calls them. Here every name resolves to one of
a handful of functions of this file, which build tensors and containers, or else to a stub that
takes whatever it is given and does nothing. No module is imported, no class of the file's is made.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip


class Inert:
    """Stands for an object of an unknown class: keeps its state and items, and does nothing."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """An empty stub, whatever the arguments."""
        stub = object.__new__(cls)
        stub.__dict__.update(state=None, items={})
        return stub

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"][key] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Another stub: what an unknown callable returns is unknown."""
        return Inert()

    def append(self, item: Any) -> None:
        """Lists of the file are of no use here."""

    extend = add = append


class Storage:
    """Bytes that tensors look at, and where they lie in the file."""

    def __init__(self, data: Tensor, dtype: torch.dtype, offset: int = -1) -> None:
        self.data, self.dtype, self.offset = data, dtype, offset


class _Allowed:
    """A function that a pickle may call; without attributes that a pickle could set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a function.")


class _Kind(_Allowed):
    """A storage class of torch's, known by its type of number."""

    __slots__ = ("dtype",)
    dtype: torch.dtype

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(lambda *args: Inert())
        object.__setattr__(self, "dtype", dtype)


class Unpickler(pickle.Unpickler):
    """Reads one pickle of ``file``; ``storage(identity)`` gives the bytes that it refers to."""

    def __init__(self, file: IO[bytes], storage: Callable[[tuple[Any, ...]], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """One of our functions, or a stub of that name."""
        if name.endswith("Storage") and module in ("torch", "torch.storage", "torch.cuda"):
            dtype = _DTYPES.get(name.removesuffix("Storage"))
            if dtype is not None:
                return _Kind(dtype)
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if (module, name) in _FUNCTIONS:
            return _Allowed(_FUNCTIONS[module, name])
        return type(name, (Inert,), {"origin": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> Any:
        """What the file keeps outside of the pickle."""
        return self._storage(identity) if isinstance(identity, tuple) else Inert()


def storage_identity(identity: tuple[Any, ...]) -> tuple[str, torch.dtype, int] | None:
    """Key, type and length of a storage that a pickle refers to; None for what is not one."""
    if len(identity) < 5 or identity[0] != "storage" or not isinstance(identity[1], _Kind):
        return None
    if not isinstance(identity[2], str) or not isinstance(identity[4], int):
        return None
    return identity[2], identity[1].dtype, identity[4]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """A tensor over a storage's bytes; the last of ``rest`` may be a type of number (torch's v3)."""
    if not isinstance(storage, Storage):
        return Inert()
    dtype = next((r for r in reversed(rest) if isinstance(r, torch.dtype)), storage.dtype)
    flat = storage.data.view(dtype)
    tensor = flat.as_strided(tuple(size), tuple(stride), offset)
    return tensor if tensor.numel() <= flat.numel() else Inert()


def _from_type(function: Any, *rest: Any) -> Any:
    """A tensor of a subclass, as the plain tensor under it."""
    arguments = rest[1] if len(rest) > 1 and isinstance(rest[1], tuple) else ()
    return function(*arguments) if isinstance(function, _Allowed) else Inert()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): lambda *args: tuple(*args),
    ("builtins", "set"): lambda *args: set(*args),
    ("__builtin__", "set"): lambda *args: set(*args),
}


def attributes(stub: Any) -> Mapping[str, Any]:
    """The attributes of a stub, if its state was a plain dictionary."""
    state = stub.__dict__["state"] if isinstance(stub, Inert) else None
    return state if isinstance(state, dict) else {}


def module_tensors(stub: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The state_dict of a pickled torch module, read from its stub."""
    state = attributes(stub)
    volatile = state.get("_non_persistent_buffers_set")
    for group in ("_parameters", "_buffers"):
        for name, tensor in _dict(state.get(group)).items():
            kept = group == "_parameters" or not isinstance(volatile, set) or name not in volatile
            if isinstance(tensor, Tensor) and kept:
                yield f"{prefix}{name}", tensor
    if depth < 100:
        for name, child in _dict(state.get("_modules")).items():
            yield from module_tensors(child, f"{prefix}{name}.", depth + 1)


def module_settings(stub: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """``eps`` and ``momentum`` of each module that has them, by name."""
    state = attributes(stub)
    found = {k: v for k, v in state.items() if k in ("eps", "momentum") and isinstance(v, (float, int, type(None)))}
    if found:
        yield prefix.removesuffix("."), found
    if depth < 100:
        for name, child in _dict(state.get("_modules")).items():
            yield from module_settings(child, f"{prefix}{name}.", depth + 1)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
