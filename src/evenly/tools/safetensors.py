"""The safetensors format: a JSON header that says where each tensor's bytes lie."""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

import torch
from torch import Tensor

from evenly.tools.rebuild import Budget, Storage

LONGEST_HEADER = 16 << 20  # bytes; a hundred thousand tensors take ten
MOST_TENSORS = 200_000
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def read(file: BinaryIO, size: int, budget: Budget) -> tuple[dict[str, Tensor], list[Storage], list[str]]:
    """The tensors in the order of their bytes, the storages behind them, and the names of those left out.

    Raises:
        ValueError: the header is damaged, or puts tensors outside of the file or over each other.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(LONGEST_HEADER, size - 8):
        raise ValueError(f"its header is said to be {length:,} bytes long; that is too much.")
    text = file.read(length)
    if text.count(b"{") > MOST_TENSORS:
        raise ValueError(f"its header names more than {MOST_TENSORS:,} tensors.")
    header = json.loads(text, object_pairs_hook=_unique)
    found: dict[str, Tensor] = {}
    storages: list[Storage] = []
    left, end = [], 0
    for key, entry in sorted(((k, _entry(k, v)) for k, v in header.items() if k != "__metadata__"), key=_at):
        kind, shape, start, stop = entry
        if stop > size - 8 - length:
            raise ValueError("it is shorter than its header says: it was cut off; download or save it again.")
        if start < end or stop < start:
            raise ValueError(f"the header puts {key!r} over another tensor.")
        end, dtype = stop, _DTYPES.get(kind)
        if dtype is None:
            left.append(key)
            continue
        if math.prod(shape) * dtype.itemsize != stop - start or math.prod(max(n, 1) for n in shape) >= 2**60:
            raise ValueError(f"the header gives {key!r} a shape that does not fit its bytes.")
        file.seek(8 + length + start)
        data = bytearray(stop - start)
        file.readinto(data)  # type: ignore[attr-defined]
        storages.append(budget.storage(data, dtype, 8 + length + start))
        found[key] = storages[-1].data.view(dtype).reshape(shape)
    return found, storages, left


def _at(item: tuple[str, tuple[str, list[int], int, int]]) -> tuple[int, int]:
    return item[1][2:]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a key twice.")
    return found


def _entry(key: str, entry: Any) -> tuple[str, list[int], int, int]:
    """Type, shape, and where the bytes start and stop."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, stop]} if len(shape) <= 64:
            if all(type(n) is int and 0 <= n < 2**62 for n in (*shape, start, stop)):
                return kind, shape, start, stop
    raise ValueError(f"the header's entry {key[:100]!r} is damaged.")
