"""Moments of a union."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenly.core.moments import Moments

numbers = st.lists(st.floats(-1e3, 1e3), max_size=30)


def moments(values: list[float]) -> Moments:
    """The definition, in float64."""
    if not values:
        return Moments(0, 0.0, 0.0)
    array = np.array(values)
    return Moments(len(values), array.mean(), ((array - array.mean()) ** 2).sum())


@given(numbers, st.lists(st.integers(0, 30), max_size=4))
def test_any_cut_merges_to_the_whole(values: list[float], cuts: list[int]) -> None:
    """Cut anywhere, also into empty parts: the moments of the parts merge to those of the whole."""
    places = sorted(min(cut, len(values)) for cut in cuts)
    parts = [values[a:b] for a, b in zip([0, *places], [*places, len(values)], strict=True)]

    merged, whole = Moments.of(moments(p) for p in parts), moments(values)

    assert merged.count == whole.count
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-10)
    assert merged.m2 == pytest.approx(whole.m2, rel=1e-11, abs=1e-9)


def test_the_union_of_stacked_sets_is_their_chain_of_merges() -> None:
    """All at once or one after the other, with empty sets among them; the axes behind the first stay."""
    generator = np.random.default_rng(0)
    count = generator.integers(0, 3, (5, 2)).astype(float)
    sets = Moments(count, generator.normal(1e3, 1.0, (5, 2)), count * generator.random((5, 2)))

    union, chain = sets.union(), Moments.of(Moments(*fields) for fields in zip(count, sets.mean, sets.m2, strict=True))

    np.testing.assert_array_equal(union.count, chain.count)
    np.testing.assert_allclose(union.mean, chain.mean, rtol=1e-14)
    np.testing.assert_allclose(union.m2, chain.m2, rtol=1e-11)


def test_merging_is_accurate_where_squares_cancel() -> None:
    """At mean 1e8 and standard deviation 1 the variance survives; E[x²] − E[x]² loses it."""
    values = np.random.default_rng(0).normal(1e8, 1.0, 1000)

    merged = Moments.of(moments(list(part)) for part in np.split(values, 10))

    assert merged.var == pytest.approx(values.var(), rel=1e-7)
    assert abs((values**2).mean() - values.mean() ** 2 - values.var()) > 0.1


def test_weights_may_be_fractions() -> None:
    """Two sets of half a count each make one of count 1, halfway between."""
    merged = Moments(0.5, 1.0, 0.0).merge(Moments(0.5, 3.0, 0.0))

    assert (merged.count, merged.mean, merged.m2) == (1.0, 2.0, 1.0)


def test_arrays_merge_set_by_set() -> None:
    """Fields may be arrays, some sets empty and others not."""
    a = Moments(np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    b = Moments(np.array([3.0, 0.0]), np.array([5.0, 0.0]), np.array([1.0, 0.0]))

    merged = a.merge(b)

    assert merged.mean.tolist() == [5.0, 1.0]
    assert merged.var.tolist() == [1 / 3, 1.0]


def test_variances_of_few_elements_stay_finite() -> None:
    """An empty set has variance 0; one element has unbiased variance 0."""
    assert Moments(0, 0.0, 0.0).var == 0.0
    assert Moments(1, 7.0, 0.0).unbiased_var == 0.0
    assert Moments(3, 0.0, 6.0).unbiased_var == 3.0
