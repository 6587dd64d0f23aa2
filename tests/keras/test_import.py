"""Keras is imported by evenly.keras alone, and its absence says what to install."""

from __future__ import annotations

import subprocess
import sys

import keras
import pytest


def run(script: str) -> str:
    """What a script prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_evenly_leaves_keras_out() -> None:
    """``import evenly``, dir() and a star import do not import Keras."""
    assert run("import sys; from evenly import *; import evenly; dir(evenly); print('keras' in sys.modules)") == "False"


def test_absence_says_what_to_install() -> None:
    """Without Keras evenly.keras is an ImportError that names the extra, in one line and without a cause."""
    script = """
import sys, evenly
sys.modules["keras"] = None
try:
    evenly.keras
except ImportError as error:
    print(error, error.__cause__, error.__suppress_context__)
"""
    assert run(script) == "evenly.keras needs Keras 3; install it with: pip install 'evenly[keras]' None True"


@pytest.mark.backend("jax", "tensorflow")
def test_torch_is_left_out() -> None:
    """On another backend a whole training call does without torch."""
    script = """
import sys, numpy, evenly
evenly.keras.BatchNormalization(activation="relu")(numpy.ones((4, 3), "float32"), training=True)
print("torch" in sys.modules)
"""
    assert run(script) == "False", keras.backend.backend()
