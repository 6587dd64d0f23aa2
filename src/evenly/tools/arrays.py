"""Numpy's arrays in files (npy, npz, pickled), read without numpy's pickles."""

from __future__ import annotations

import ast
import math
import struct
from typing import Any

from torch import Tensor

from evenly.tools.archive import Archive
from evenly.tools.pickles import Stub
from evenly.tools.rebuild import NUMPY_DTYPES, Budget, Storage

MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # as numpy has it: what is longer is no header
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")  # of pickle protocol 5


def header(data: bytes) -> tuple[str, tuple[int, ...], bool, int]:
    """Type of number, shape, whether columns come first, and where the numbers start, of a npy file's head.

    Raises:
        ValueError: it is none, or its numbers are objects (which only a pickle can make).
    """
    if data[:6] != MAGIC or len(data) < 12:
        raise ValueError("an entry is no numpy array.")
    wide = data[6] > 1
    length, start = (struct.unpack_from("<I", data, 8)[0], 12) if wide else (struct.unpack_from("<H", data, 8)[0], 10)
    if length > _LONGEST_HEADER or start + length > len(data):
        raise ValueError("a numpy array's header is damaged.")
    found = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
    descr, shape, fortran = found["descr"], found["shape"], found["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError("a numpy array's shape must be whole numbers, not negative.")
    if not isinstance(descr, str) or "O" in descr:
        raise ValueError("it holds Python objects or records, not arrays of numbers.")
    return descr, shape, fortran is True, start + length


def tensor(data: bytearray, offset: int, budget: Budget) -> tuple[Tensor, Storage] | None:
    """A npy file's array, and the storage behind it; None for a type of number that torch lacks."""
    descr, shape, fortran, start = header(bytes(data[: _LONGEST_HEADER + 12]))
    dtype = NUMPY_DTYPES.get(descr)
    if dtype is None:
        return None
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError("a numpy array has another number of bytes than its shape takes.")
    storage = budget.storage(data[start:], dtype, -1 if offset < 0 else offset + start)
    return budget.view(storage, dtype, 0, shape, _strides(shape, fortran)), storage


def _strides(shape: tuple[int, ...], fortran: bool) -> tuple[int, ...]:
    steps, step = [], 1
    for length in shape if fortran else reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(steps if fortran else reversed(steps))


def members(archive: Archive, budget: Budget) -> tuple[dict[str, Tensor], list[Storage], list[str]]:
    """The arrays of a npz file by name, the storages behind them, and the names of those left out."""
    found: dict[str, Tensor] = {}
    storages, left = [], []
    for name, info in archive.entries.items():
        if not name.endswith(".npy"):
            continue
        data, offset = archive.stored(name) if info.compress_type == 0 else (archive.unpacked(name), -1)
        made = tensor(data, offset, budget)
        if made is None:
            left.append(name.removesuffix(".npy"))
        else:
            found[name.removesuffix(".npy")] = made[0]
            storages.append(made[1])
    return found, storages, left


class Pickled:
    """Turns the stubs of pickled arrays into tensors; bytes that several share are taken once."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._storages: dict[int, Storage] = {}

    def tensor(self, stub: Any) -> Tensor | None:
        """The array that a stub stands for, or None."""
        match stub:
            case Stub(origin=origin, state=(_, shape, kind, fortran, bytes(data))) if origin in _RECONSTRUCT:
                pass
            case Stub(origin=origin, args=(bytes(data), kind, shape, order)) if origin in _FROM_BUFFER:
                fortran = order == "F"
            case _:
                return None
        dtype = NUMPY_DTYPES.get(_descr(kind))
        if dtype is None or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            return None
        if id(data) not in self._storages:
            self._storages[id(data)] = self._budget.storage(bytearray(data), dtype)
        return self._budget.view(self._storages[id(data)], dtype, 0, shape, _strides(shape, fortran is True))


def _descr(kind: Any) -> str:
    """``<f4`` of a pickled ``numpy.dtype``."""
    if not isinstance(kind, Stub) or kind.origin != "numpy.dtype" or not kind.args or not isinstance(kind.args[0], str):
        return ""
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    return f"{order}{kind.args[0]}"
