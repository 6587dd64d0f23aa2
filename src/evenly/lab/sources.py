"""What a cell's numbers come from besides its setting: evenly's own code and kernels, torch, and the user's code."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import sysconfig
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

import evenly

_OURS = Path(evenly.__file__).parent
_ASIDE = ("bench", "keras", "page")  # folders of ours that no cell runs
_INSTALLED = tuple({os.path.realpath(p) + os.sep for name, p in sysconfig.get_paths().items() if name != "data"})
_SESSION = secrets.token_hex(8)
_seen: dict[str, tuple[tuple[int, ...], str]] = {}


class ChangedError(RuntimeError):
    """Code or data changed after it was read: some cells would be of the old, others of the new."""


@lru_cache
def installed() -> tuple[str, ...]:
    """Versions, the processor's instructions, and a digest of evenly's sources and kernels."""
    found = hashlib.sha256()
    for path in sorted(_OURS.rglob("*")):
        if path.suffix in (".py", ".so", ".pyd") and not set(path.relative_to(_OURS).parts[:-1]) & set(_ASIDE):
            found.update(f"{path.relative_to(_OURS)}\n".encode() + path.read_bytes())
    chosen = [f"{name}={os.environ.get(name, '')}" for name in ("EVENLY_BACKEND", "EVENLY_ISA")]
    capability = torch.backends.cpu.get_cpu_capability()
    return evenly.__version__, torch.__version__, capability, *chosen, found.hexdigest()


def users(place: str) -> dict[str, str]:
    """The files of the user's code behind ``MODULE:FACTORY``, and their digests.

    That is every module loaded by now whose file lies outside of Python's own folders, or in the
    package of MODULE: what MODULE imports, directly or not, at its top or on the way, is among them.

    Raises:
        ChangedError: a file is no longer what it was when this process first looked at it.
    """
    name = place.partition(":")[0]
    module = import_module(name)
    if getattr(module, "__file__", None) is None:  # typed into a notebook: the next one may hold other code
        return {name: _SESSION}
    package = name.partition(".")[0]
    found = {}
    for other, loaded in list(sys.modules.items()):
        path = _file(loaded)
        theirs = other == name or other.partition(".")[0] == package
        if path and (theirs or (other != "__main__" and _outside(path))):
            found[path] = _digest(path)
    return dict(sorted(found.items()))


def check_same(one: dict[str, str], other: dict[str, str]) -> None:
    """Refuse two digests of one file.

    Raises:
        ChangedError: two processes read different code.
    """
    for path in one.keys() & other.keys():
        if one[path] != other[path] and _SESSION not in (one[path], other[path]):
            raise _changed(path)


def _file(module: ModuleType | None) -> str:
    path = getattr(module, "__file__", None)
    return os.path.realpath(path) if isinstance(path, str) and os.path.isfile(path) else ""


def _outside(path: str) -> bool:
    return not path.startswith((*_INSTALLED, str(_OURS) + os.sep)) and "site-packages" not in path


def _digest(path: str) -> str:
    try:
        state = os.stat(path)
        stamp = state.st_ino, state.st_size, state.st_mtime_ns
        if path in _seen and _seen[path][0] == stamp:
            return _seen[path][1]
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        raise _changed(path) from None
    if path in _seen and _seen[path][1] != found:
        raise _changed(path)
    _seen[path] = stamp, found
    return found


def _changed(path: str) -> ChangedError:
    return ChangedError(f"{path} changed after it was read; start again, so that every cell runs the new code.")
