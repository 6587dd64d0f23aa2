"""The example of padded sequences learns, and pools its micro-batches."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "padded_sequences.py"


def test_padded_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation is good although the padding would spoil plain statistics; four micro-batches count as one."""
    accuracy = runpy.run_path(str(EXAMPLE))["main"](steps=60)

    assert accuracy > 0.9
    assert "batches entered: 60 (of 240 micro-batches)" in capsys.readouterr().out
