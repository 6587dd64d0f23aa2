"""What `evenly info` knows of the process it runs in."""

from __future__ import annotations

import pytest
import torch

import evenly
from evenly.versions import OPTIONAL, openmp_runtimes, versions


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


def test_at_most_one_openmp_runtime() -> None:
    """torch and the kernels share one OpenMP library: two would fight for the cores."""
    assert len(openmp_runtimes()) <= 1
