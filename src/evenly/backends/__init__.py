"""Backends: modules with the four steps. This file chooses one."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from torch import Tensor

from evenly.backends import reference

NAMES = ("auto", "cpu", "triton", "reference")
_forced = "auto"


def choose(x: Tensor) -> ModuleType:
    """The backend for ``x``: the forced one, else the CPU kernels where they serve, else the reference."""
    if _forced == "reference":
        return reference
    cpu = import_cpu()
    if cpu is not None and cpu.serves(x):
        return cpu
    return reference


def forced() -> bool:
    """Whether a backend was asked for by name."""
    return _forced != "auto"


def reference_alone() -> bool:
    """Whether the reference was asked for, whatever else there is."""
    return _forced == "reference"


def import_cpu() -> ModuleType | None:
    """The CPU backend, or None where its extension was not built."""
    global _cpu, _cpu_looked_for
    if not _cpu_looked_for:
        _cpu_looked_for = True
        try:
            _cpu = import_module("evenly.backends.cpu")
        except ImportError as error:
            _warn_pure(error)
    return _cpu


_cpu: ModuleType | None = None
_cpu_looked_for = False


def _warn_pure(error: ImportError) -> None:
    import warnings

    warnings.warn(
        f"evenly's CPU kernels are not built ({error}); every layer runs on torch operations, "
        "several times slower. Install a C++17 compiler and reinstall evenly.",
        RuntimeWarning,
        stacklevel=5,
    )


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}; known are {', '.join(NAMES)}.")
    if name == "cpu" and import_cpu() is None:
        raise RuntimeError("the CPU kernels are not built; install a C++17 compiler and reinstall evenly.")
    if name == "triton":
        raise RuntimeError('the Triton kernels are not part of this version; use "auto".')
    return name


class use_backend:  # noqa: N801  # read as a verb, like torch.no_grad
    """Force a backend, for the process or for a ``with`` block.

    Args:
        name: ``"auto"``, ``"cpu"`` or ``"reference"`` (``"triton"`` is reserved). The variable
            ``EVENLY_BACKEND`` sets it at import.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is not built.

    Example:
        >>> with use_backend("reference"):
        ...     pass
    """

    def __init__(self, name: str) -> None:
        global _forced
        self._before, _forced = _forced, _checked(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _forced
        _forced = self._before


if "EVENLY_BACKEND" in os.environ:
    use_backend(os.environ["EVENLY_BACKEND"])
