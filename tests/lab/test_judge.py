"""Intervals over seeds, and verdicts that follow from them by rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenly.lab.judge import STUDENT, Interval, at_least, at_most, exactly, within

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
def test_student_quantiles_hold_95_percent(freedom: int) -> None:
    """Between minus and plus each tabled quantile lies 95 % of Student's density, integrated here."""
    t = np.linspace(0, STUDENT[freedom - 1], 400_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2)

    assert 2 * np.trapezoid(density, t) == pytest.approx(0.95, abs=2e-5)


def test_quantiles_descend_towards_the_normal() -> None:
    """More degrees of freedom, narrower intervals, never narrower than the normal's."""
    assert list(STUDENT) == sorted(STUDENT, reverse=True)
    assert STUDENT[-1] > 1.96


def test_interval_by_hand() -> None:
    """For 1, 2, 3: mean 2, standard error 1 / sqrt(3), two degrees of freedom."""
    interval = Interval.of([1.0, 2.0, 3.0])

    assert interval.value == 2
    assert interval.high - 2 == pytest.approx(4.3027 / math.sqrt(3))


def test_ratios_are_averaged_on_their_logarithm() -> None:
    """Tenfold and a tenth cancel."""
    interval = Interval.of([10.0, 0.1], "×")

    assert interval.value == pytest.approx(1)
    assert interval.low * interval.high == pytest.approx(1)


def test_one_seed_decides_nothing() -> None:
    """A single run has no spread, so no claim can rest on it, however clear it looks."""
    assert at_least("claim", "figure", Interval.of([1e9]), 0).outcome == "cannot tell"


@pytest.mark.parametrize(("given", "unit"), [([], "number"), ([0.0, 1.0], "×"), ([-1.0, 1.0], "×")])
def test_refuses_what_has_no_interval(given: list[float], unit: str) -> None:
    """No values, and ratios that are not positive, are refused."""
    with pytest.raises(ValueError, match=r"at least one value|must be positive"):
        Interval.of(given, unit)  # type: ignore[arg-type]


@given(values, st.floats(-1e3, 1e3))
def test_a_claim_and_its_opposite_never_both_hold(numbers: list[float], bound: float) -> None:
    """Where "at least" holds "at most" does not, but where all is exactly the bound; one interval, one answer."""
    interval = Interval.of(numbers)
    up, down = at_least("", "", interval, bound).outcome, at_most("", "", interval, bound).outcome

    if interval.low == interval.high == bound:
        assert (up, down) == ("holds", "holds")
    else:
        assert (up, down) in {("holds", "does not hold"), ("does not hold", "holds"), ("cannot tell", "cannot tell"),
                              ("holds", "cannot tell"), ("cannot tell", "holds")}  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.5, 0.5, "holds"), (-2, 0.5, "cannot tell"), (2, 3, "does not hold"), (-3, -2, "does not hold")],
)
def test_within(low: float, high: float, outcome: str) -> None:
    """Equivalence needs the whole interval inside; an interval outside refutes it."""
    assert within("", "", Interval((low + high) / 2, low, high, 5), 1).outcome == outcome


def test_texts() -> None:
    """An interval reads in its unit, and the rule names the bound in the same one."""
    verdict = at_least("claim", "figure", Interval(0.031, 0.02, 0.04, 5, "points"), 0.01)

    assert str(verdict.interval) == "3.1 points [2.0, 4.0]"
    assert verdict.rule == "Holds if the whole interval is 1.0 points or more"
    assert str(Interval(2512.0, 1325.0, 4760.0, 5, "×")) == "2,512× [1,325, 4,760]"
    assert str(Interval.of([3.0])) == "3 (one seed)"
    assert "holds" in verdict._repr_html_()
    assert "5 seeds" in verdict.interval._repr_html_()


def test_an_exact_check_has_no_interval() -> None:
    """The largest difference is compared with the rounding and printed without brackets; NaN is no agreement."""
    small, large = exactly("c", "a", [0.0, -3e-13], 1e-12), exactly("c", "a", [0.0, 3e-12], 1e-12)

    assert (small.outcome, large.outcome) == ("holds", "does not hold")
    assert small.measured == "at most 3e-13, exact, 2 checks"
    assert str(exactly("c", "a", [0.0, 0.0], 1e-12).interval) == "exactly 0"
    assert exactly("c", "a", [math.nan, 0.0], 1e-12).outcome == "does not hold"
    assert exactly("c", "a", [0.0, math.nan], 1e-12).outcome == "does not hold"
    assert small.exact
    assert not at_least("c", "a", Interval.of([1.0, 2.0]), 0.0).exact


def test_a_share_stays_a_share() -> None:
    """The interval of an accuracy ends at 0 and at 100 %."""
    assert str(Interval.of([0.1, 0.99], "accuracy")) == "54.5 % [0.0, 100.0]"


def test_nothing_is_printed_as_minus_zero() -> None:
    """A mean that rounds to zero has no sign."""
    assert str(Interval.of([-0.0002, -0.0002], "points")) == "0.0 points [0.0, 0.0]"
