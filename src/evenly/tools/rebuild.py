"""What the names in a checkpoint's pickle are to us: tensors over bytes of the file, and containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from evenly.tools.pickles import DamagedError, Global, Stub, key

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
# As numpy writes them, in the byte order of the machines that we run on.
NUMPY_DTYPES = {
    "<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16, "<i8": torch.int64, "<i4": torch.int32,
    "<i2": torch.int16, "|i1": torch.int8, "|u1": torch.uint8, "|b1": torch.bool, "<c8": torch.complex64,
}  # fmt: skip
MOST_VIEWED = 16  # times the file's size that its tensors may have together: tied weights are in it several times
_MOST_AXES = 64
MOST_MODULES = 100_000


class Storage:
    """Bytes that tensors look at, and where they lie in the file; -1 where they cannot be replaced there."""

    __slots__ = ("data", "dtype", "offset")

    def __init__(self, data: Tensor, dtype: torch.dtype, offset: int = -1) -> None:
        self.data, self.dtype, self.offset = data, dtype, offset


class Budget:
    """What the tensors of one file may take.

    Args:
        size: of the file; all storages together cannot be longer.
    """

    def __init__(self, size: int) -> None:
        self._stored, self._viewed = size, MOST_VIEWED * size

    def storage(self, data: bytearray, dtype: torch.dtype, offset: int = -1) -> Storage:
        """The bytes as a storage, counted."""
        self.take(len(data))
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return Storage(flat, dtype, offset)

    def take(self, count: int) -> None:
        """Count bytes of a storage before they are asked for.

        Raises:
            DamagedError: the file has fewer.
        """
        self._stored -= count
        if count < 0 or self._stored < 0:
            raise DamagedError("its tensors ask for more bytes than the file has.")

    def view(self, storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
        """A tensor over a storage; every element lies inside.

        Raises:
            DamagedError: one does not, or the tensors of the file are too large together.
        """
        if not _whole((offset,)) or not _whole(size) or not _whole(stride) or len(size) != len(stride):
            raise DamagedError("a tensor's offset, shape and strides must be whole numbers, not negative.")
        count, last, widest = dtype.itemsize, offset, 1
        for length, step in zip(size, stride, strict=True):
            count, last, widest = count * length, last + (length - 1) * step, widest * max(length, 1)
            if count > self._viewed or widest >= 2**60:  # the second: none at all, of a shape beyond numbers
                raise DamagedError("its tensors are larger than the file could hold.")
        self._viewed -= count
        length = len(storage.data) // dtype.itemsize
        if count and last >= length:
            raise DamagedError("a tensor reaches beyond its bytes.")
        flat = storage.data[: length * dtype.itemsize].view(dtype)
        return flat.as_strided(tuple(size), tuple(stride), offset if count else 0)


def _whole(numbers: Any) -> bool:
    return (
        isinstance(numbers, (tuple, list))
        and len(numbers) <= _MOST_AXES
        and all(type(n) is int and 0 <= n < 2**62 for n in numbers)
    )


class Rebuild:
    """Calls of the names that a checkpoint's pickle may call; any other call gives a stub.

    Args:
        budget: of the file.
        nested: reads what torch.save wrote into a text of this pickle.
    """

    def __init__(self, budget: Budget, nested: Callable[[bytes], Any]) -> None:
        self._budget, self._nested = budget, nested

    def __call__(self, function: Global, args: tuple[Any, ...]) -> Any:
        """What the call gives."""
        name = (function.module, function.name)
        if name in _TENSORS:
            return self._tensor(*args) if len(args) >= 4 else Stub()
        if name == ("torch._tensor", "_rebuild_from_type_v2") and len(args) > 2 and isinstance(args[0], Global):
            return self(args[0], args[2]) if isinstance(args[2], tuple) and args[0] is not function else Stub()
        if name == ("torch.storage", "_load_from_bytes") and args and isinstance(args[0], bytes):
            return self._nested(args[0])
        if name in _PLAIN:
            return _PLAIN[name](*args)
        return Stub(f"{function.module}.{function.name}", args)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        """A tensor; among ``rest`` may be a type of number (torch's third form)."""
        if not isinstance(storage, Storage):
            return Stub()
        dtype = next((d for d in map(dtype_of, reversed(rest)) if d is not None), storage.dtype)
        return self._budget.view(storage, dtype, offset, size, stride)


def dtype_of(name: Any) -> torch.dtype | None:
    """The type of number that a name stands for: ``torch.float32``, ``torch.FloatStorage``."""
    if not isinstance(name, Global) or name.module not in ("torch", "torch.storage", "torch.cuda"):
        return None
    if name.name.endswith("Storage"):
        return _DTYPES.get(name.name.removesuffix("Storage"))
    found = vars(torch).get(name.name)
    return found if isinstance(found, torch.dtype) else None


def storage_identity(identity: Any) -> tuple[str, torch.dtype, int] | None:
    """Key, type and length of a storage that a pickle refers to; None for what is not one."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        return None
    dtype = dtype_of(identity[1])
    if dtype is None or not isinstance(identity[2], str) or not _whole((identity[4],)):
        return None
    return identity[2], dtype, identity[4]


def _pairs(*args: Any) -> dict[Any, Any]:
    """``OrderedDict(pairs)``."""
    pairs = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return {key(pair[0]): pair[1] for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2}


def _items(*args: Any) -> set[Any]:
    return set(map(key, args[0])) if args and isinstance(args[0], (list, tuple)) else set()


def _encoded(*args: Any) -> Any:
    """``_codecs.encode(text, "latin1")``: how protocol 2 writes bytes."""
    return args[0].encode("latin-1") if len(args) == 2 and isinstance(args[0], str) else Stub()


def _first(*args: Any) -> Any:
    return args[0] if args else Stub()


_TENSORS = {("torch._utils", f"_rebuild_tensor{version}") for version in ("", "_v2", "_v3")}
_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("collections", "OrderedDict"): _pairs,
    ("torch", "Size"): lambda *args: tuple(args[0]) if args and isinstance(args[0], (list, tuple)) else (),
    ("_codecs", "encode"): _encoded,
    ("builtins", "set"): _items,
    ("__builtin__", "set"): _items,
}


def modules(stub: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The attributes of a pickled torch module and of those inside it, by name (with a dot behind it).

    Raises:
        DamagedError: there are more than anyone has: modules that hold each other.
    """
    waiting, seen = [("", stub, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        seen += 1
        if seen > MOST_MODULES or depth > 100:
            raise DamagedError("its modules are nested without end.")
        state = attributes(module)
        yield prefix, state
        children = _dict(state.get("_modules")).items()
        waiting += [(f"{prefix}{name}.", child, depth + 1) for name, child in reversed(list(children))]


def attributes(stub: Any) -> dict[Any, Any]:
    """The attributes of a stub, if its state was a plain dictionary."""
    return _dict(stub.state) if isinstance(stub, Stub) else {}


def module_tensors(stub: Any) -> dict[str, Tensor]:
    """The state_dict of a pickled torch module."""
    found = {}
    for prefix, state in modules(stub):
        volatile = state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            for name, tensor in _dict(state.get(group)).items():
                kept = group == "_parameters" or not isinstance(volatile, set) or name not in volatile
                if isinstance(tensor, Tensor) and kept:
                    found[f"{prefix}{name}"] = tensor
    return found


def module_settings(stub: Any) -> dict[str, dict[str, Any]]:
    """``eps`` and ``momentum`` of each module that has them, by name."""
    return {
        prefix.removesuffix("."): found
        for prefix, state in modules(stub)
        if (found := {k: state[k] for k in ("eps", "momentum") if _number(state.get(k, ""))})
    }


def _number(value: Any) -> bool:
    return value is None or isinstance(value, (float, int))


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
