"""One setting for all tests: deterministic, whatever ran before."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# Keras chooses its backend when it is imported, by whichever test comes first.
os.environ.setdefault("KERAS_BACKEND", "torch")

settings.register_profile("evenly", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("evenly")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test starts from the same random state."""
    torch.manual_seed(0)
