"""What is installed, what is built, and what runs the kernels."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import evenly
from evenly import backends
from evenly.tools import names

OPTIONAL = ("keras", "altair", "jinja2", "joblib", "safetensors", "timm", "triton")


def show_versions() -> None:
    """Print what is built, which instruction set and which runtime the kernels use.

    Paste its output into a bug report. `versions` returns the same as a dictionary.

    Example:
        >>> evenly.show_versions()                                    # doctest: +ELLIPSIS
        evenly ...
    """
    facts = versions()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {names.line(fact)}")


def versions() -> dict[str, str]:
    """Names and facts in the order in which `show_versions` prints them.

    Example:
        >>> versions()["evenly"] == evenly.__version__
        True
    """
    return {
        "evenly": evenly.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "kernels": _kernels(),
        "OpenMP": ", ".join(openmp_runtimes()) or "none loaded",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{name: _installed(name) for name in OPTIONAL},
    }


def openmp_runtimes() -> list[str]:
    """The OpenMP libraries in this process; two in one process slow each other down badly."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "/" in line}
    return sorted(f for f in files if Path(f).name.startswith(("libgomp", "libomp", "libiomp")))


def _kernels() -> str:
    if "evenly.backends.cpu" not in sys.modules and not _built():
        return "not built: every layer runs on torch operations"
    cpu = backends.import_cpu()
    return "not built: every layer runs on torch operations" if cpu is None else f"built, {cpu.instruction_set()}"


def _built() -> bool:
    """Whether the extension can be found; asking this way does not warn where it cannot."""
    from importlib.util import find_spec

    return find_spec("evenly._cpu") is not None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
