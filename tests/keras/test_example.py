"""examples/keras_digits.py runs, learns and says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "keras_digits.py"


def test_digits() -> None:
    """After two epochs both kinds of norm know most digits, equally well, and conversion goes on from there."""
    done = subprocess.run([sys.executable, EXAMPLE, "2"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    theirs, ours, converted, same = (
        line.split()[i] for line, i in zip(done.stdout.splitlines(), (3, 3, 3, -1), strict=True)
    )
    assert abs(float(theirs[:-1]) - float(ours[:-1])) < 1.0
    assert min(float(ours[:-1]), float(converted[:-1])) > 90
    assert same == "True"
