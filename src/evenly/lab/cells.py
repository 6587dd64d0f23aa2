"""Finished cells on disk: one small file each, written whole, found again by what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenly.lab import sources
from evenly.lab.data import load
from evenly.lab.experiment import Cell, Result, Values
from evenly.lab.setting import Setting
from evenly.tools import files


@dataclass(frozen=True)
class Store:
    """The folder of finished cells.

    A cell's file is named by everything that could change its numbers: setting, seed, data, evenly's
    code and kernels, torch, and all code of the user's that it ran. What was computed under other
    circumstances is therefore not found, and computed again; so is a file that somebody edited.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Store:
        """The store in ``folder``, made if need be.

        Raises:
            ValueError: the folder cannot be made or written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"cannot write to {folder} ({reason}); name another folder with --out") from None
        return cls(folder)

    def read(self, cell: Cell) -> Result | None:
        """The finished cell, or None; a damaged or edited file counts as not finished."""
        try:
            stored = json.loads(self._path(cell).read_text("utf-8"))
            measured = {name: stored[name] for name in ("setting", "seed", "values")}
            if stored["checksum"] != _checksum(measured) or stored["seed"] != cell.seed:
                return None
            setting = Setting.of(stored["setting"])
            return Result(setting, cell.seed, stored["values"]) if setting == cell.setting else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def spoiled(self, cell: Cell) -> bool:
        """Whether there is a file for the cell that cannot be used: damaged, or edited by hand."""
        return self._path(cell).exists() and self.read(cell) is None

    def write(self, cell: Cell, values: Values) -> None:
        """Keep what was measured: either the whole file appears, or none."""
        path = self._path(cell)
        path.parent.mkdir(exist_ok=True)
        measured = {"setting": cell.setting.as_dict(), "seed": cell.seed, "values": values}
        files.write(path, json.dumps({**measured, "checksum": _checksum(measured)}))

    def _path(self, cell: Cell) -> Path:
        depends = [cell.setting.as_dict(), cell.seed, load(cell.setting.data).fingerprint, _code(cell)]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return self.folder / cell.experiment / f"{digest[:24]}.json"


def read_by(cell: Cell) -> dict[str, str]:
    """The data and the user's files that a cell is made of, and their digests, as this process has read them.

    Raises:
        ChangedError: one of the files changed since.
    """
    theirs = sources.users(cell.setting.network) if ":" in cell.setting.network else {}
    return {cell.setting.data: load(cell.setting.data).fingerprint, **theirs}


def _code(cell: Cell) -> list[str]:
    theirs = sources.users(cell.setting.network) if ":" in cell.setting.network else {}
    return [cell.experiment, *sources.installed(), *theirs.values()]


def _checksum(measured: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:24]
