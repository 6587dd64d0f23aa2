"""A safetensors file behind an address, read by byte ranges: its header, then the norms' tensors alone."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from evenly.tools import names

_HEADER = 32 << 20  # bytes of a header at most
_BODY = 256 << 20  # of tensors, or of a whole file where the server knows no ranges
_GAP = 64 << 10  # between two tensors that are read in one go
_TRIES = 3
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
           "I32": torch.int32}  # fmt: skip
_PARTS = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")

Get = Callable[[int, int], bytes]


def read(address: str, pause: float = 1.0) -> dict[str, Tensor]:
    """The tensors of the batch norms of a safetensors file.

    Requests are made one after the other; a server that is busy (429, 503) is asked again after a
    pause that doubles, or that it names.

    Args:
        address: ``https://`` or ``http://``.
        pause: seconds before the second try.

    Raises:
        ValueError: it cannot be read, is no safetensors file, or asks for more than the limits.
    """
    if not address.startswith(("https://", "http://")):
        raise ValueError(f"{names.visible(address)} is no address; it must begin with https:// or http://.")
    get = _getter(address, pause)
    length = int.from_bytes(get(0, 8), "little")
    if not 2 <= length <= _HEADER:
        raise ValueError(f"{names.visible(address)} is no safetensors file; other formats are read from disk.")
    try:
        header = json.loads(get(8, 8 + length))
        wanted = _wanted(header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{names.visible(address)} has no sound safetensors header: {names.line(error)}") from None
    if sum(stop - start for start, stop in wanted.values()) > _BODY:
        raise ValueError(f"{names.visible(address)}: its norms take more than {_BODY >> 20} MiB.")
    found = {}
    for group in _runs(wanted):
        first, last = min(wanted[k][0] for k in group), max(wanted[k][1] for k in group)
        data = get(8 + length + first, 8 + length + last)
        for key in group:
            start, stop = (at - first for at in wanted[key])
            flat = torch.frombuffer(bytearray(data[start:stop]), dtype=_DTYPES[header[key]["dtype"]])
            found[key] = flat.reshape(header[key]["shape"])
    return found


def _wanted(header: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Where the tensors of batch norms lie, behind the header."""
    norms = {key.removesuffix("running_mean") for key in header if key.endswith("running_mean")}
    found = {}
    for key in (n + part for n in norms for part in _PARTS if n + part in header):
        start, stop = header[key]["data_offsets"]
        size = math.prod(header[key]["shape"]) * _DTYPES[header[key]["dtype"]].itemsize
        if not 0 <= start <= stop or stop - start != size:
            raise ValueError(f"{key} has a shape that does not fit its bytes")
        if size:
            found[key] = (start, stop)
    return found


def _runs(wanted: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Keys that lie close together, each to be read in one go."""
    runs: list[list[str]] = []
    for key in sorted(wanted, key=lambda k: wanted[k]):
        if runs and wanted[key][0] - wanted[runs[-1][-1]][1] <= _GAP:
            runs[-1].append(key)
        else:
            runs.append([key])
    return runs


def _getter(address: str, pause: float) -> Get:
    """Bytes of the file; all of it at once where the server knows no ranges and it is small."""
    whole: list[bytes] = []

    def get(start: int, stop: int) -> bytes:
        if not whole:
            data, ranged = _asked(address, start, stop, pause)
            if ranged:
                if len(data) != stop - start:
                    raise ValueError(f"{names.visible(address)} ends before its tensors do.")
                return data
            whole.append(data)
        if len(whole[0]) < stop:
            raise ValueError(f"{names.visible(address)} ends before its tensors do.")
        return whole[0][start:stop]

    return get


def _asked(address: str, start: int, stop: int, pause: float) -> tuple[bytes, bool]:
    request = Request(address, headers={"Range": f"bytes={start}-{stop - 1}", "User-Agent": "evenly"})
    for number in range(_TRIES):
        try:
            with urlopen(request, timeout=60) as answer:
                if answer.status == 206:
                    return answer.read(stop - start + 1), True
                data = answer.read(_BODY + 1)
                if len(data) > _BODY:
                    raise ValueError(
                        f"{names.visible(address)}: the server knows no byte ranges, and the file is large."
                    )
                return data, False
        except HTTPError as error:
            if error.code not in (429, 503) or number == _TRIES - 1:
                raise ValueError(f"{names.visible(address)} cannot be read: {error.code} {error.reason}") from None
            asked = error.headers.get("Retry-After", "")
            time.sleep(min(float(asked), 60.0) if asked.isdecimal() else pause * 2**number)
        except (URLError, OSError) as error:
            raise ValueError(f"{names.visible(address)} cannot be read: {names.line(error)}") from None
    raise AssertionError("unreachable")
