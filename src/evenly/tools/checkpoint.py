"""Checkpoints: the tensors of a file, read without running anything, and the file with some replaced.

Every format keeps its tensors as plain bytes at known places. So reading looks at those bytes, and
a mended file is the given one with some of the bytes replaced: same format, same keys, same rest.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenly.tools import archive, pickles
from evenly.tools.pickles import Inert, Storage, Unpickler

_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass
class Checkpoint:
    """The tensors of a file.

    Args:
        path: the file.
        form: ``"safetensors"``, ``"torch"`` or ``"torch, legacy"``.
        tensors: by key, in the file's order.
        settings: ``eps`` and ``momentum`` by layer, where the file holds whole modules.
        inside: where in the file the tensors were found, such as ``"state_dict"``.
        others: where else it holds as many tensors, such as ``"state_dict_ema"``.
        storages: the bytes behind the tensors.
    """

    path: Path
    form: str
    tensors: dict[str, Tensor]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    inside: str = ""
    others: list[str] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)

    def write(self, out: str | Path, changes: Mapping[str, Tensor]) -> None:
        """Write the file again with some tensors replaced.

        Args:
            out: the new file; never the one that was read.
            changes: new values by key, of the old shapes.

        Raises:
            ValueError: ``out`` is the input, a key is unknown or a shape differs.
        """
        out = Path(out)
        if out.exists() and out.samefile(self.path):
            raise ValueError(f"{out} is the file that was read; give the mended one another name.")
        for key, value in changes.items():
            if key not in self.tensors:
                raise ValueError(f"{self.path.name} has no tensor {key!r}.")
            if self.tensors[key].shape != value.shape:
                raise ValueError(f"{key} has shape {tuple(self.tensors[key].shape)}, not {tuple(value.shape)}.")
        content = bytearray(self.path.read_bytes())
        for storage, data in self._changed(changes):
            content[storage.offset : storage.offset + len(data)] = data
        if self.form == "torch":
            archive.mend_checksums(content, self.path)
        out.write_bytes(content)

    def _changed(self, changes: Mapping[str, Tensor]) -> Iterator[tuple[Storage, bytes]]:
        """The storages with the changes written into them, as bytes; put back afterwards."""
        before = {key: self.tensors[key].clone() for key in changes}
        for key, value in changes.items():
            self.tensors[key].copy_(value)
        touched = {self.tensors[key].untyped_storage().data_ptr() for key in changes}
        yield from (
            (s, s.data.numpy().tobytes()) for s in self.storages if s.data.untyped_storage().data_ptr() in touched
        )
        for key, value in before.items():
            self.tensors[key].copy_(value)


def read(path: str | Path) -> Checkpoint:
    """The tensors of a checkpoint; nothing in the file is executed.

    Args:
        path: safetensors, or a file of torch.save (also of old torch): a state_dict, a dictionary
            that holds one (Lightning, timm), or a whole model.

    Raises:
        ValueError: the file is something else, damaged, or holds no tensors with names.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"epoch": 3, "state_dict": torch.nn.BatchNorm1d(2).state_dict()}, file)
        >>> list(read(file).tensors)
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":
            return _safetensors(path)
        return _torch(path, *(_zip(path) if zipfile.is_zipfile(path) else _legacy(path)))
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or hostile file brings about is the file's fault
        raise ValueError(f"{path} cannot be read as a checkpoint: {' '.join(str(error).split())}") from None


def _safetensors(path: Path) -> Checkpoint:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    found = Checkpoint(path, "safetensors", {})
    entries = ((k, v) for k, v in header.items() if k != "__metadata__" and v["dtype"] in _SAFETENSORS)
    for key, entry in sorted(entries, key=lambda item: item[1]["data_offsets"][0]):
        start, stop = (8 + length + at for at in entry["data_offsets"])
        storage = _storage(content[start:stop], _SAFETENSORS[entry["dtype"]], start)
        if math.prod(entry["shape"]) * storage.dtype.itemsize != stop - start:
            raise ValueError(f"the header gives {key} a shape that does not fit its bytes.")
        found.tensors[key] = storage.data.view(storage.dtype).reshape(entry["shape"])
        found.storages.append(storage)
    return found


def _storage(data: bytes, dtype: torch.dtype, offset: int) -> Storage:
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return Storage(flat, dtype, offset)


def _zip(path: Path) -> tuple[Any, str, dict[str, Storage]]:
    """What torch.save wrote: a zip archive with one pickle and the bytes of each storage."""
    storages: dict[str, Storage] = {}
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError(
                "this is a TorchScript or torch.export archive, a program; save model.state_dict() instead."
            )
        root = next((name for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise ValueError("the archive holds no data.pkl.")
        prefix = root.removesuffix("data.pkl")
        if f"{prefix}byteorder" in names and file.read(f"{prefix}byteorder") != b"little":
            raise ValueError("its numbers are big-endian; save it again on a little-endian machine.")

        def storage(identity: tuple[Any, ...]) -> Any:
            known = pickles.storage_identity(identity)
            if known is None:
                return Inert()
            key, dtype, _ = known
            if key not in storages:
                data, offset = archive.stored(file, f"{prefix}data/{key}")
                storages[key] = _storage(data, dtype, offset)
            return Storage(storages[key].data, dtype, storages[key].offset)

        return Unpickler(io.BytesIO(file.read(root)), storage).load(), "torch", storages


def _legacy(path: Path) -> tuple[Any, str, dict[str, Storage]]:
    """What torch before 1.6 wrote: pickles one after the other, then the bytes of each storage."""
    storages: dict[str, Storage] = {}

    def storage(identity: tuple[Any, ...]) -> Any:
        known = pickles.storage_identity(identity)
        if known is None:  # ('module', object, source file, source): the object itself
            return identity[1] if identity[:1] == ("module",) and len(identity) > 1 else Inert()
        key, dtype, length = known
        if not 0 <= length * dtype.itemsize <= size:
            raise pickle.UnpicklingError(f"a storage of {length} numbers does not fit a file of {size} bytes.")
        if key not in storages:
            storages[key] = _storage(bytes(length * dtype.itemsize), dtype, -1)
        view = identity[5] if len(identity) > 5 else None
        if isinstance(view, tuple):
            _, start, length = view
            step = dtype.itemsize
            return Storage(storages[key].data[start * step : (start + length) * step], dtype)
        return storages[key]

    size = path.stat().st_size
    with path.open("rb") as file:
        pickled: Callable[[], Any] = lambda: Unpickler(file, storage).load()  # noqa: E731
        if pickled() != _LEGACY_MAGIC:
            raise ValueError("it is neither safetensors nor a file of torch.save.")
        pickled()
        information = pickled()
        if not isinstance(information, dict) or information.get("little_endian") is not True:
            raise ValueError("its numbers are big-endian; save it again on a little-endian machine.")
        content = pickled()
        for key in pickled():
            file.seek(8, io.SEEK_CUR)  # its length, which the pickle said already
            storages[key].offset = file.tell()
            storages[key].data.copy_(torch.frombuffer(bytearray(file.read(len(storages[key].data))), dtype=torch.uint8))
    return content, "torch, legacy", storages


def _torch(path: Path, content: Any, form: str, storages: dict[str, Storage]) -> Checkpoint:
    """The largest set of named tensors in what a file of torch.save holds."""
    found = [(where, tensors, stub) for where, tensors, stub in _sets(content, ()) if tensors]
    if not found:
        raise ValueError("it holds no tensors with names.")
    most = max(len(tensors) for _, tensors, _ in found)
    inside, tensors, stub = next(item for item in found if len(item[1]) == most)
    others = [where for where, rest, _ in found if len(rest) == most and where != inside]
    settings = dict(pickles.module_settings(stub)) if stub is not None else {}
    return Checkpoint(path, form, tensors, settings, inside, others, list(storages.values()))


def _sets(content: Any, where: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor], Any]]:
    """Every set of named tensors, and the module that it belongs to, if it is one."""
    place = ".".join(where)
    if isinstance(content, Inert):
        if "_modules" in pickles.attributes(content):
            yield place, dict(pickles.module_tensors(content)), content
            return
        content = content.__dict__["items"]
    if not isinstance(content, dict) or len(where) > 4:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    yield place, {key: value for key, value in named.items() if isinstance(value, Tensor)}, None
    for key, value in named.items():
        if "optim" not in key:
            yield from _sets(value, (*where, key))
