"""What `evenly info` knows of the process it runs in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import evenly
from evenly.versions import OPTIONAL, versions


def test_facts_are_those_of_this_process() -> None:
    """Versions and threads are asked of what is loaded, not of a file."""
    facts = versions()

    assert facts["evenly"] == evenly.__version__
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == str(torch.get_num_threads())
    assert set(OPTIONAL) <= set(facts)


def test_show_versions_prints_every_fact(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a fact, aligned, ready for a bug report."""
    evenly.show_versions()
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines] == list(versions())
    assert len({line.index(fact) for line, fact in zip(lines, versions().values(), strict=True)}) == 1


def test_one_openmp_runtime() -> None:
    """torch and the kernels share one OpenMP library: two would fight for the cores.

    Asked in a process of its own, because other packages of the suite bring theirs.
    """
    script = (
        "import torch, evenly, evenly.versions as v\n"
        "evenly.BatchNorm1d(2)(torch.randn(4, 2)); print(len(v.openmp_runtimes()))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)

    assert int(done.stdout) == (1 if sys.platform == "linux" else 0)
