"""Weights of a batch in a running average."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenly.core.running import Average, average, cumulative, debiased, ema

values = st.lists(st.floats(-100, 100), min_size=1, max_size=20)


def follow(rule: Average, values: list[float], start: float) -> float:
    """The running average after all values."""
    running = start
    for seen, value in enumerate(values, 1):
        running += rule(seen) * (value - running)
    return running


@given(values)
def test_cumulative_is_the_plain_mean(values: list[float]) -> None:
    """Every batch weighs alike and the initial value nothing."""
    assert follow(cumulative(), values, start=1e6) == pytest.approx(sum(values) / len(values), abs=1e-6)


@given(values, st.floats(0.01, 1.0))
def test_debiased_is_the_exponential_average_without_its_start(values: list[float], momentum: float) -> None:
    """It equals the exponential average from 0 divided by the weight that has come in."""
    biased = follow(ema(momentum), values, start=0.0)
    weight = 1 - (1 - momentum) ** len(values)

    assert follow(debiased(momentum), values, start=123.0) == pytest.approx(biased / weight, abs=1e-6)


def test_names_choose_the_average() -> None:
    """A layer's arguments choose; momentum None is cumulative whatever the name."""
    assert average("ema", 0.3)(7) == 0.3
    assert average("debiased", 0.3)(1) == pytest.approx(1.0)
    assert average("ema", None)(4) == average("debiased", None)(4) == 0.25


def test_an_unknown_average_is_refused() -> None:
    """The error says what there is."""
    with pytest.raises(ValueError, match="momentum=None"):
        average("mean", 0.1)
