"""Verdicts by rule: an interval over seeds, a bound fixed beforehand, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Outcome = Literal["holds", "does not hold", "cannot tell"]
Unit = Literal["×", "points", "accuracy", "number", "largest"]

# Quantiles 0.975 of Student's t for 1 to 30 degrees of freedom; the test suite integrates the density.
STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval.

    Args:
        value: the mean; of ratios the geometric mean.
        low: lower end.
        high: upper end.
        seeds: how many runs it rests on.
        unit: ``"×"`` for ratios, ``"points"`` for differences of accuracy in hundredths,
            ``"accuracy"`` for shares of one, ``"number"`` for the rest; ``"largest"``: an exact check, of which
            the largest value counts and which has no interval.

    Example:
        >>> print(Interval.of([0.91, 0.93, 0.92], "accuracy"))
        92.0 % [89.5, 94.5]
    """

    value: float
    low: float
    high: float
    seeds: int
    unit: Unit = "number"

    @classmethod
    def of(cls, values: Sequence[float], unit: Unit = "number") -> Interval:
        """Student's t interval; that of a ratio is taken on its logarithm.

        One value has no interval: its ends are infinite, and no claim can rest on it.

        Raises:
            ValueError: there are no values, or a ratio is not positive.
        """
        if not values:
            raise ValueError("an interval needs at least one value, got none")
        if unit == "×":
            if min(values) <= 0:
                raise ValueError(f"ratios must be positive to average their logarithms, got {min(values)}")
            logs = cls.of([math.log(v) for v in values])
            return cls(math.exp(logs.value), math.exp(logs.low), _exp(logs.high), len(values), unit)
        mean, half = fmean(values), math.inf
        if len(values) > 1:
            freedom = len(values) - 1
            quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else STUDENT[-1]
            half = quantile * stdev(values) / math.sqrt(len(values))
        low, high = mean - half, mean + half
        if unit == "accuracy" and half < math.inf:  # no share of one lies outside
            low, high = max(low, 0.0), min(high, 1.0)
        return cls(mean, low, high, len(values), unit)

    @classmethod
    def largest(cls, values: Sequence[float]) -> Interval:
        """The largest size of values that should all be zero: nothing is drawn at random, so nothing is estimated.

        Example:
            >>> print(Interval.largest([0.0, -2e-7]), "and", Interval.largest([0.0, 0.0]))
            at most 2e-07 and exactly 0
        """
        worst = math.nan if any(map(math.isnan, values)) else max(map(abs, values))
        return cls(worst, worst, worst, len(values), "largest")

    def __str__(self) -> str:
        if self.unit == "largest":
            return f"at most {self.value:.3g}" if self.value else "exactly 0"
        scale, suffix = {"×": (1, "×"), "points": (100, " points"), "accuracy": (100, " %"), "number": (1, "")}[
            self.unit
        ]
        value, low, high = (_short(x * scale, self.unit) for x in (self.value, self.low, self.high))
        return f"{value}{suffix} [{low}, {high}]" if self.seeds > 1 else f"{value}{suffix} (one seed)"

    def _repr_html_(self) -> str:
        return f"<b>{self}</b> over {self.seeds} {'checks' if self.unit == 'largest' else 'seeds'}"


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _short(x: float, unit: Unit) -> str:
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if unit in ("points", "accuracy"):
        return f"{round(x, 1) + 0.0:.1f}"  # adding 0 turns a rounded -0 into 0
    text = f"{x:.3g}"
    return f"{x:,.0f}" if "e+" in text and abs(x) < 1e7 else text


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured, and what the rule says.

    Args:
        claim: the sentence that is judged.
        outcome: ``"holds"``, ``"does not hold"`` or ``"cannot tell"``.
        interval: the number it rests on.
        rule: when the claim holds, in words.
        about: what the number is.
    """

    claim: str
    outcome: Outcome
    interval: Interval
    rule: str
    about: str

    @property
    def exact(self) -> bool:
        """Whether it is a check of an identity, without an interval."""
        return self.interval.unit == "largest"

    @property
    def measured(self) -> str:
        """The number with its interval and how many runs it rests on: ``8.4× [6.7, 10.5], n = 10``."""
        return (
            f"{self.interval}, exact, {self.interval.seeds} checks"
            if self.exact
            else (f"{self.interval}, n = {self.interval.seeds}")
        )

    def _repr_html_(self) -> str:
        return f"<p><b>{self.outcome}</b>: {self.claim}<br>{self.about}: {self.interval}. {self.rule}.</p>"


def at_least(claim: str, about: str, interval: Interval, bound: float) -> Verdict:
    """Holds if the whole interval is at ``bound`` or above; does not hold if all of it is below."""
    outcome = _side(interval.low >= bound, interval.high < bound)
    return Verdict(claim, outcome, interval, f"Holds if the whole interval is {_bound(bound, interval)} or more", about)


def at_most(claim: str, about: str, interval: Interval, bound: float) -> Verdict:
    """Holds if the whole interval is at ``bound`` or below; does not hold if all of it is above."""
    outcome = _side(interval.high <= bound, interval.low > bound)
    return Verdict(claim, outcome, interval, f"Holds if the whole interval is {_bound(bound, interval)} or less", about)


def within(claim: str, about: str, interval: Interval, bound: float) -> Verdict:
    """Holds if the whole interval lies within ``bound`` of zero; does not hold if all of it lies outside."""
    outcome = _side(-bound <= interval.low and interval.high <= bound, interval.low > bound or interval.high < -bound)
    rule = f"Holds if the whole interval lies within {_bound(bound, interval)} of zero"
    return Verdict(claim, outcome, interval, rule, about)


def exactly(claim: str, about: str, values: Sequence[float], rounding: float) -> Verdict:
    """Holds if no value is larger than ``rounding``: an identity of the formulas, checked, not estimated."""
    interval = Interval.largest(values)
    outcome = _side(interval.value <= rounding, not interval.value <= rounding)
    rule = f"An exact check: holds if no value is larger than {rounding:g}, which leaves room for rounding"
    return Verdict(claim, outcome, interval, rule, about)


def _side(holds: bool, fails: bool) -> Outcome:
    return "holds" if holds else "does not hold" if fails else "cannot tell"


def _bound(bound: float, interval: Interval) -> str:
    alone = Interval(bound, bound, bound, 2, interval.unit)
    return str(alone).partition(" [")[0]
