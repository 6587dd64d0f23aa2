"""Keras's backend is fixed when Keras is imported: torch, unless KERAS_BACKEND says otherwise (../conftest.py)."""

from __future__ import annotations

import keras
import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked ``backend("torch")`` is skipped on the others."""
    mark = item.get_closest_marker("backend")
    if mark is not None and keras.backend.backend() not in mark.args:
        pytest.skip(f"of the {' and '.join(mark.args)} backend only")


@pytest.fixture(autouse=True)
def _keras_seed() -> None:
    """Initial weights and shuffling are the same in every test."""
    keras.utils.set_random_seed(0)
