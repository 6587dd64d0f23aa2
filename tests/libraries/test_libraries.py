"""Models of other libraries through our tools: each in a process of its own, skipped where not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.libraries.child import MODELS

pytestmark = pytest.mark.slow
RAN: set[str] = set()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_library(name: str) -> None:
    """Converted, fused, trained, frozen, saved, reverted: the numbers are the plain model's, and nothing crashes."""
    child = Path(__file__).with_name("child.py")
    done = subprocess.run([sys.executable, str(child), name], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-1500:]}"
    last = done.stdout.strip().splitlines()[-1]
    if last.startswith("SKIPPED"):
        pytest.skip(last)
    assert last.startswith("checked: "), done.stdout
    RAN.add(name.split()[0])


def test_at_least_eight_libraries_ran() -> None:
    """In their own environment (`make test-libraries`); elsewhere there may be none."""
    if "libraries" not in sys.prefix:
        pytest.skip("not in the environment that `make test-libraries` makes")
    assert len(RAN) >= 8, f"only {sorted(RAN)} could be imported"
