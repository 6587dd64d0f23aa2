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
def _precision(request: pytest.FixtureRequest) -> None:
    """Where torch's own operators compute, the precision is torch's, and tests of a better one are skipped."""
    if request.node.get_closest_marker("precise") is not None:
        from evenly import backends

        if backends.chosen() == "native" or (backends.chosen() == "auto" and backends.import_cpu() is None):
            pytest.skip("torch's own operators compute here, as precisely as they do")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test starts from the same random state."""
    torch.manual_seed(0)
