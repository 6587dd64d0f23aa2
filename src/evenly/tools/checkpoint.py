"""Checkpoints: the tensors of a file, read without running anything, and the file with some replaced.

Every format keeps its tensors as plain bytes at known places. So reading looks at those bytes, and
a mended file is the given one with some of the bytes replaced: same format, same keys, same rest.
What reading may cost is bounded by the file's size (docs/security.md).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from evenly.tools import archive, arrays, files, formats, names, safetensors, saved
from evenly.tools.groups import Group, named_tensors
from evenly.tools.rebuild import Budget, Storage

MEMORY = "it takes more memory than there is"
_MENDED = ("safetensors", "torch", "torch, legacy", "numpy")


@dataclass
class Checkpoint:
    """The tensors of a file.

    Args:
        path: the file.
        form: ``"safetensors"``, ``"torch"``, ``"torch, legacy"``, ``"numpy"``, ``"pickle"`` or
            ``"safetensors, sharded"`` (after the form of the parts).
        tensors: by key, in the file's order.
        settings: ``eps`` and ``momentum`` by layer, where the file holds whole modules.
        inside: where in the file the tensors were found, such as ``"state_dict"``.
        others: where else it holds as many tensors, such as ``"state_dict_ema"``.
        storages: the bytes behind the tensors.
        groups: every set of named tensors in the file, this one among them, in the file's order.
        left_out: keys of tensors whose type of number torch does not have.
        digest: SHA-256 of the file that was read; empty where there were several.
        parts: the files that an index names, which were read too.
    """

    path: Path
    form: str
    tensors: dict[str, Tensor]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    inside: str = ""
    others: list[str] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    digest: str = ""
    parts: list[Path] = field(default_factory=list)

    def write(self, out: str | Path, changes: Mapping[str, Tensor]) -> None:
        """Write the file again with some tensors replaced: whole, or not at all.

        Args:
            out: the new file; never the one that was read.
            changes: new values by key, of the old shapes.

        Raises:
            ValueError: ``out`` is the input or cannot be written, a key is unknown, a shape differs, a value
                does not fit the file's type, the format cannot be mended, or the file has changed since it was read.
            OSError: the disk is full.
        """
        files.check_outputs({"the mended file": out}, [self.path])
        if self.form not in _MENDED:
            raise ValueError(f"{self.path.name} ({self.form}) can be read and not mended; save it with torch.save.")
        for key, value in changes.items():
            self._check(key, value)
        replaced = self._changed(changes)
        with self.path.open("rb") as source, files.replacing(out) as target:
            if files.copy(source, target) != self.digest:
                raise ValueError(f"{self.path} has changed since it was read; read it again.")
            for offset, data in replaced.items():
                target.seek(offset)
                target.write(data)
            if self.form in ("torch", "numpy"):
                archive.mend_checksums(target, replaced)

    def _check(self, key: str, value: Tensor) -> None:
        old = self.tensors.get(key)
        if old is None:
            raise ValueError(f"{self.path.name} has no tensor {key!r}.")
        if old.shape != value.shape:
            raise ValueError(f"{key} has shape {tuple(old.shape)}, not {tuple(value.shape)}.")
        if any(n > 1 and s == 0 for n, s in zip(old.shape, old.stride(), strict=True)):
            raise ValueError(f"{key} is one number for many places in the file, and cannot be mended there.")
        wide = torch.complex128 if old.is_complex() else torch.float64
        stored, value = value.to(old.dtype).to(wide), value.to(wide)
        fits = stored.isfinite().equal(value.isfinite()) and (
            old.is_floating_point() or old.is_complex() or stored.equal(value)
        )
        if not fits:
            raise ValueError(
                f"{key} is {str(old.dtype).removeprefix('torch.')} in the file, which cannot hold its new values."
            )

    def _changed(self, changes: Mapping[str, Tensor]) -> dict[int, bytes]:
        """The storages with the changes written into them, by their place in the file; put back afterwards."""
        before = {key: self.tensors[key].clone() for key in changes}
        touched = {self.tensors[key].untyped_storage().data_ptr() for key in changes}
        try:
            for key, value in changes.items():
                self.tensors[key].copy_(value)
            found = [s for s in self.storages if s.data.untyped_storage().data_ptr() in touched]
            if any(s.offset < 0 for s in found):
                raise ValueError(f"{self.path.name} is compressed, and cannot be mended; save it uncompressed.")
            return {s.offset: s.data.numpy().tobytes() for s in found}
        finally:
            for key, value in before.items():
                self.tensors[key].copy_(value)


def read(path: str | Path, inside: str | None = None) -> Checkpoint:
    """The tensors of a checkpoint; nothing in the file is executed.

    Args:
        path: safetensors (also the index of a sharded one), a file of torch.save (also of old torch), numpy's
            npz, a pickle: a state_dict, a dictionary or list that holds one (Lightning, timm), or a whole model.
        inside: which of the sets in the file, such as ``"state_dict_ema"``; None: the one with most tensors.

    Raises:
        ValueError: the file is something else, damaged, asks for more than its size, or holds no tensors with names.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"epoch": 3, "state_dict": torch.nn.BatchNorm1d(2).state_dict()}, file)
        >>> list(read(file).tensors)
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    path = Path(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        about = formats.told_of_folder(path) if stat.S_ISDIR(mode) else "it is no file"
        raise _refusal(path, about)
    with path.open("rb") as file:
        try:
            before = files.stamp(file)
            found = _read(path, file)
            found.digest = found.digest and files.digest(file)
            if files.stamp(file) != before:
                raise ValueError("it changed while it was read; try again")
            return _chosen(found, inside)
        except RecursionError:
            reason: object = "it is nested too deeply"
        except MemoryError:
            reason = MEMORY
        except Exception as error:  # whatever a damaged or hostile file brings about is the file's fault
            reason = error
    raise _refusal(path, reason)


def _refusal(path: Path, reason: object) -> ValueError:
    return ValueError(f"{names.visible(path)} cannot be read as a checkpoint: {names.visible(names.line(reason), 400)}")


def _read(path: Path, file: BinaryIO) -> Checkpoint:
    """By the first bytes."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(formats.HEAD)
    budget = Budget(size)
    if head[8:9] == b"{" and not head.startswith(b"\x80"):
        tensors, storages, left = safetensors.read(file, size, budget)
        return Checkpoint(path, "safetensors", {}, {}, "", [], storages, [Group("", tensors)], left, "read")
    if head.startswith(b"PK"):
        return _zip(path, file, budget)
    if path.suffix == ".json" and (shards := _shards(path, file, size)) is not None:
        return shards
    about = formats.told(head, path)
    if about is not None:
        raise ValueError(about)
    if head.startswith(arrays.MAGIC):
        raise ValueError("it is one numpy array without a name; save them by name with numpy.savez")
    form, content, storages = saved.legacy(file, size, budget)
    return Checkpoint(path, form, {}, {}, "", [], storages, named_tensors(content, budget), [], "read")


def _zip(path: Path, file: BinaryIO, budget: Budget) -> Checkpoint:
    """What torch.save or numpy.savez wrote."""
    found = archive.Archive(file)
    entries = list(found.entries)
    if any(name.endswith(".npy") for name in entries) and not any(name.endswith("data.pkl") for name in entries):
        tensors, storages, left = arrays.members(found, budget)
        return Checkpoint(path, "numpy", {}, {}, "", [], storages, [Group("", tensors)], left, "read")
    if not any(f"/{name}".endswith("/data.pkl") for name in entries) or any(
        "constants.pkl" in name for name in entries
    ):
        raise ValueError(formats.told_of_archive(entries))
    content, storages = saved.zipped(found, budget)
    return Checkpoint(path, "torch", {}, {}, "", [], storages, named_tensors(content, budget), [], "read")


def _shards(path: Path, file: BinaryIO, size: int) -> Checkpoint | None:
    """All parts of a sharded checkpoint, if the file is the index of one."""
    if size > safetensors.LONGEST_HEADER:
        raise ValueError(f"the index is {size:,} bytes long; {safetensors.LONGEST_HEADER:,} are read at most")
    file.seek(0)
    parts = formats.shards(file.read())
    if parts is None:
        return None
    read_parts = [read(path.parent / name) for name in parts]
    group = Group("", {key: tensor for part in read_parts for key, tensor in part.tensors.items()})
    left = [key for part in read_parts for key in part.left_out]
    form = f"{read_parts[0].form if read_parts else 'safetensors'}, sharded"
    storages = [storage for part in read_parts for storage in part.storages]
    return Checkpoint(
        path, form, {}, {}, "", [], storages, [group], left, parts=[part.path for part in read_parts]
    )  # fmt: skip


def _chosen(found: Checkpoint, inside: str | None) -> Checkpoint:
    """The set that was asked for, or the largest outside of optimizers; the first of equals."""
    groups = [group for group in found.groups if group.tensors]
    if not groups:
        raise ValueError("it holds no tensors with names; save model.state_dict() with torch.save.")
    if inside is not None and inside not in (group.inside for group in groups):
        has = ", ".join(repr(group.inside) for group in groups[:20])
        raise ValueError(f"it holds no set {inside!r}; it has {has}")
    usual = [group for group in groups if not group.optimizer] or groups
    most = max(len(group.tensors) for group in usual)
    as_many = [group for group in usual if len(group.tensors) == most]
    chosen = as_many[0] if inside is None else next(group for group in groups if group.inside == inside)
    found.tensors, found.settings, found.inside = chosen.tensors, chosen.settings, chosen.inside
    found.groups, found.others = groups, [group.inside for group in as_many if group is not chosen]
    return found
