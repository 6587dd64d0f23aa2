"""Statistics that merge: the moments of a set, and of a union of sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a set of numbers, or of many sets at once.

    The fields are numbers or arrays (anything with ``+ - * /``); an array holds one set per
    element. ``var = m2 / count`` is the biased variance, by which a norm divides.

    Args:
        count: how many elements, or the sum of their weights; zero is legal.
        mean: their mean (any finite value where ``count`` is zero).
        m2: the sum of their squared deviations from ``mean``.

    Example:
        >>> a, b = Moments(2, 1.5, 0.5), Moments(1, 6.0, 0.0)      # {1, 2} and {6}
        >>> a.merge(b)                                              # {1, 2, 6}
        Moments(count=3, mean=3.0, m2=14.0)
    """

    count: Any
    mean: Any
    m2: Any

    @property
    def var(self) -> Any:
        """Biased variance ``m2 / count``; zero for an empty set."""
        return self.m2 / _at_least_one(self.count)

    @property
    def unbiased_var(self) -> Any:
        """Unbiased variance ``m2 / (count - 1)``; meaningful only where ``count > 1``."""
        return self.m2 / _at_least_one(self.count - 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets (Chan, Golub and LeVeque, 1979).

        Either may be empty. Merging many sets in one order gives the same bits everywhere.
        """
        count = self.count + other.count
        share = other.count / _at_least_one(count)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + delta * delta * (self.count * share),
        )

    @classmethod
    def of(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of the union of ``parts`` (at least one), merged in their order."""
        return reduce(cls.merge, parts)

    def union(self) -> Moments:
        """Moments of the union of the sets that lie along the first axis of the (array) fields.

        All are merged at once, where a chain of merges would take a dozen small operations each.
        """
        count = self.count.sum(0)
        mean = (self.mean * (self.count / _at_least_one(count))).sum(0)
        deviation = self.mean - mean
        return Moments(count, mean, (self.m2 + self.count * deviation * deviation).sum(0))


def _at_least_one(count: Any) -> Any:
    """``count`` where positive, else 1: what to divide by, so that an empty set stays finite.

    A weighted count may be a fraction, so the guard must not be ``max(count, 1)``.
    """
    return count + (count <= 0) * (1 - count)
