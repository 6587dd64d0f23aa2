"""The public names: what there is, that it loads, that it is documented and typed."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import evenly

NAMES = {
    "Renorm", "timm_norm_act",
    "BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm",
    "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
    "functional", "convert", "revert", "reverted", "show_versions", "use_backend",
    "recalibrate", "pool_statistics", "freeze", "unfreeze", "adapt", "fold",
    "xray", "diagnose", "Diagnosis", "watch", "check_model",
}  # fmt: skip
FUNCTIONS = {"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "lengths_to_mask"}


def test_names_are_these() -> None:
    """A public name comes or goes only together with this list."""
    assert set(evenly.__all__) == NAMES
    assert set(dir(evenly)) == NAMES | {"__version__"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_name_loads_and_is_documented(name: str) -> None:
    """Each name loads on first use, is kept, and has a docstring that begins with a sentence."""
    value = getattr(evenly, name)

    assert getattr(evenly, name) is value
    first = (inspect.getdoc(value) or "").splitlines()[0]
    assert first.endswith((".", ":")), first


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functionals(name: str) -> None:
    """Each functional is there and documented."""
    assert inspect.getdoc(getattr(evenly.functional, name))


def test_stub_lists_the_same_names() -> None:
    """`__init__.pyi`, which type checkers read, names what `__init__.py` loads, from the same modules."""
    stub = ast.parse((Path(evenly.__file__).with_suffix(".pyi")).read_text())
    typed = {
        alias.asname: (node.module, alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert set(typed) == set(evenly.__all__) | {"keras"}  # not in __all__: a star import must not need Keras
    for name, (module, original) in typed.items():
        loaded = getattr(evenly, name)
        assert original == name
        if isinstance(loaded, ModuleType):
            assert loaded.__name__ == f"{module}.{name}"
        else:
            assert loaded.__module__ == module


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not public is refused as Python refuses it."""
    with pytest.raises(AttributeError, match="has no attribute 'BatchNorm4d'"):
        evenly.BatchNorm4d  # noqa: B018  # looking it up is the test


def test_import_alone_leaves_torch_out() -> None:
    """``import evenly`` answers at once: neither torch nor numpy is imported by it."""
    script = "import sys, evenly; evenly.__version__, dir(evenly); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
