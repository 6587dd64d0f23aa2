"""Backends: modules that make kernels. This file is the registry, and chooses one."""

from __future__ import annotations

import os
import warnings
from contextvars import ContextVar, Token
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from evenly.backends import native, reference
from evenly.backends.kernel import Kernel
from evenly.core.norm import Norm

# Now, and not at the first call: a process that forks while another thread imports hangs in the child.
_cpu: ModuleType | None
try:
    _cpu, _missing = import_module("evenly.backends.cpu"), None
except ImportError as error:
    _cpu, _missing = None, error

REGISTRY = ("cpu", "native", "reference")
"""The backends, in the order in which they are asked whether they serve a tensor."""

NAMES = ("auto", *REGISTRY)
_default = "auto"
_of_context: ContextVar[str | None] = ContextVar("evenly_backend", default=None)


def prepare(norm: Norm, x: Tensor, order: tuple[int, ...]) -> Kernel:
    """The kernel for inputs like ``x``: of the backend asked for, else of the first that serves it.

    Args:
        norm: what is constant.
        x: an input like all that will come, dense in ``order``.
        order: its axes in memory order.
    """
    name = chosen()
    for backend in available() if name == "auto" else (available_by_name(name),):
        if backend is not None and backend.serves(x):
            kernel: Kernel | None = backend.prepare(norm, x, order)
            if kernel is not None:
                return kernel
    return reference.prepare(norm, x, order)


def chosen() -> str:
    """The name that `use_backend` set, for this context or for the process."""
    return _of_context.get() or _default


@cache
def available() -> tuple[ModuleType, ...]:
    """The backends of this installation, in the order of the registry."""
    return tuple(backend for name in REGISTRY if (backend := available_by_name(name)) is not None)


def available_by_name(name: str) -> ModuleType | None:
    """A backend of the registry, or None where it was not built."""
    return {"native": native, "reference": reference}.get(name) or import_cpu()


@cache
def import_cpu() -> ModuleType | None:
    """The CPU backend, or None where its extension was not built, which is said once."""
    if _cpu is None:
        warnings.warn(
            f"evenly's CPU kernels are not built ({_missing}); every layer runs on torch's operators. "
            "Install a C++17 compiler and reinstall evenly.",
            RuntimeWarning,
            stacklevel=5,
        )
    return _cpu


class use_backend:  # noqa: N801  # read as a verb, like torch.no_grad
    """Choose a backend, for the process or for a ``with`` block.

    A plain call sets the process's default. ``with`` chooses for the block alone, in this thread: other
    threads keep theirs. The backend of a forward pass is also that of its backward pass. Where the
    chosen one has no kernel for a norm, the reference does it.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"native"`` (torch's operators) or ``"reference"``. The variable
            ``EVENLY_BACKEND`` sets it at import.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is not built.

    Example:
        >>> with use_backend("reference"):
        ...     pass
    """

    def __init__(self, name: str) -> None:
        global _default
        if name not in NAMES:
            raise ValueError(f"unknown backend {name!r}; known are {', '.join(NAMES)}.")
        if name == "cpu" and import_cpu() is None:
            raise RuntimeError("the CPU kernels are not built; install a C++17 compiler and reinstall evenly.")
        self._name, self._before, _default = name, _default, name
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> use_backend:
        global _default
        _default = self._before  # what was meant for the block alone
        self._tokens.append(_of_context.set(self._name))
        return self

    def __exit__(self, *exception: object) -> None:
        _of_context.reset(self._tokens.pop())


if "EVENLY_BACKEND" in os.environ:
    use_backend(os.environ["EVENLY_BACKEND"])
