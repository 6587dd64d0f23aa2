"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest
import torch

import evenly
from evenly import backends

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(evenly.__path__, "evenly.") if not module.name.endswith("._cpu")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    """Every ``>>>`` line of a module prints what stands below it, in the module's own namespace."""
    if name == "evenly.backends.cpu" and backends.import_cpu() is None:
        pytest.skip("the CPU kernels are not built")
    module: ModuleType = importlib.import_module(name)
    torch.manual_seed(0)
    failed, _ = doctest.testmod(module, optionflags=OPTIONS, extraglobs={"torch": torch, "evenly": evenly})

    assert failed == 0
