"""What torch.save and pickle.dump wrote: a pickle, and the bytes of the storages that it refers to."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from evenly.tools.archive import Archive
from evenly.tools.opcodes import load
from evenly.tools.pickles import DamagedError, Machine, Stub
from evenly.tools.rebuild import Budget, Rebuild, Storage, storage_identity

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_BIG_ENDIAN = "its numbers are big-endian; save it again on a little-endian machine."


def zipped(archive: Archive, budget: Budget) -> tuple[Any, list[Storage]]:
    """The object in a zip archive with one pickle and the bytes of each storage.

    Raises:
        ValueError: an entry is missing, compressed or damaged, or the pickle asks for too much.
    """
    root = next(name for name in archive.entries if f"/{name}".endswith("/data.pkl"))
    prefix = root.removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.entries and archive.stored(f"{prefix}byteorder")[0] != b"little":
        raise ValueError(_BIG_ENDIAN)
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        known = storage_identity(identity)
        if known is None:
            return Stub()
        key, dtype, _ = known
        if key not in storages:
            storages[key] = budget.storage(*_entry(archive, f"{prefix}data/{key}", dtype))
        return Storage(storages[key].data, dtype, storages[key].offset)

    program, _ = archive.stored(root)
    machine = Machine(io.BytesIO(program), len(program), Rebuild(budget, _Nested(budget)), storage)
    return load(machine), list(storages.values())


def _entry(archive: Archive, name: str, dtype: Any) -> tuple[bytearray, Any, int]:
    data, offset = archive.stored(name)
    return data, dtype, offset


class _Nested:
    """Storages that torch.save wrote into a text of another pickle; those cannot be mended where they lie."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, data: bytes) -> Any:
        """The storage."""
        if not data.startswith(b"\x80") or data.count(b"_load_from_bytes"):
            return Stub()
        found = _legacy(io.BytesIO(data), len(data), self._budget, nested=lambda inner: Stub())[1]
        return Storage(found.data, found.dtype) if isinstance(found, Storage) else Stub()


def legacy(file: BinaryIO, size: int, budget: Budget) -> tuple[str, Any, list[Storage]]:
    """The form, the object and the storages of what torch before 1.6 wrote, or of a plain pickle.

    Raises:
        ValueError: it is neither, or damaged, or asks for too much.
    """
    file.seek(0)
    return _legacy(file, size, budget, _Nested(budget))


def _legacy(file: BinaryIO, size: int, budget: Budget, nested: Any) -> tuple[str, Any, list[Storage]]:
    """Pickles one after the other, then the bytes of each storage."""
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        known = storage_identity(identity)
        if known is None:  # ('module', object, source file, source): the object itself
            module = isinstance(identity, tuple) and identity[:1] == ("module",) and len(identity) > 1
            return identity[1] if module else Stub()
        key, dtype, length = known
        if key not in storages:
            if length * dtype.itemsize > size:
                raise DamagedError("its tensors ask for more bytes than the file has.")
            storages[key] = budget.storage(bytearray(length * dtype.itemsize), dtype)
        return _part(storages[key], identity[5] if len(identity) > 5 else None)

    machine = Machine(file, size, Rebuild(budget, nested), storage)
    first = load(machine)
    if first != _LEGACY_MAGIC:
        if storages:
            raise DamagedError("the bytes of its tensors are not in it.")
        return "pickle", first, []
    load(machine)
    information = load(machine)
    if not isinstance(information, dict) or information.get("little_endian") is not True:
        raise ValueError(_BIG_ENDIAN)
    content = load(machine)
    keys = load(machine)
    if not isinstance(keys, list) or set(keys) != set(storages) or len(keys) != len(storages):
        raise DamagedError("its storages are others than its tensors ask for.")
    for key in keys:
        _fill(file, storages[key])
    return "torch, legacy", content, list(storages.values())


def _part(storage: Storage, view: Any) -> Storage:
    """A part of a storage, as torch before 0.4 had them."""
    if not isinstance(view, tuple) or len(view) != 3:
        return storage
    _, start, length = view
    if type(start) is not int or type(length) is not int or start < 0 or length < 0:
        raise DamagedError("a part of a storage must be whole numbers, not negative.")
    step = storage.dtype.itemsize
    return Storage(storage.data[start * step : (start + length) * step], storage.dtype)


def _fill(file: BinaryIO, storage: Storage) -> None:
    """A storage's bytes, behind their number."""
    count = int.from_bytes(file.read(8), "little", signed=True)
    storage.offset = file.tell()
    data = storage.data.numpy()
    if count * storage.dtype.itemsize != len(data) or file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise DamagedError("it ends before its tensors do, or gives a tensor another length.")
