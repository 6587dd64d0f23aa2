"""Finished cells on disk: one small file each, written whole, found again by what they depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import torch

import evenly
from evenly.lab import networks, train
from evenly.lab.data import load
from evenly.lab.experiment import Cell, Result, Values
from evenly.lab.setting import Setting


@dataclass(frozen=True)
class Store:
    """The folder of finished cells.

    A cell's file is named by everything that could change its numbers: setting, seed, data, the
    code of experiment, network and training, and the versions of evenly and torch. What was
    computed under other circumstances is therefore not found, and computed again.
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
        """The finished cell, or None; a damaged file counts as not finished."""
        try:
            stored = json.loads(self._path(cell).read_text())
            return Result(Setting.of(stored["setting"]), stored["seed"], stored["values"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, cell: Cell, values: Values) -> None:
        """Keep what was measured: either the whole file appears, or none."""
        path = self._path(cell)
        path.parent.mkdir(exist_ok=True)
        text = json.dumps({"setting": cell.setting.as_dict(), "seed": cell.seed, "values": values})
        part = path.with_suffix(f".part-{os.getpid()}")
        part.write_text(text)
        part.replace(path)

    def _path(self, cell: Cell) -> Path:
        depends = [cell.setting.as_dict(), cell.seed, load(cell.setting.data).fingerprint, _code(cell)]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return self.folder / cell.experiment / f"{digest[:24]}.json"


def _code(cell: Cell) -> list[str]:
    modules = [networks.__name__, train.__name__, f"evenly.lab.experiments.{cell.experiment}"]
    if ":" in cell.setting.network:
        modules.append(cell.setting.network.partition(":")[0])
    return [evenly.__version__, torch.__version__, *map(_text_digest, modules)]


@lru_cache
def _text_digest(module: str) -> str:
    import_module(module)
    return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()
