"""Which elements share statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenly.core.partition import Partition

sizes = st.integers(1, 4)


def sets(partition: Partition) -> np.ndarray:
    """The number of the set of each element of the flat tensor."""
    o, _, g, _ = np.indices(partition.shape)
    return (o * partition.group + g).ravel()


def channels(partition: Partition) -> np.ndarray:
    """The channel of each element of the flat tensor."""
    return np.arange(partition.numel) // partition.stride % partition.channels


@given(sizes, sizes, sizes, sizes)
def test_batch_norm_shares_by_channel_in_both_layouts(n: int, c: int, h: int, w: int) -> None:
    """Every element of a channel, and no other, is in the channel's set."""
    first = np.indices((n, c, h, w))[1].ravel()
    last = np.indices((n, h, w, c))[3].ravel()

    for partition, channel in (
        (Partition.of_batch((n, c, h, w), 1), first),
        (Partition.of_batch((n, h, w, c), 3), last),
    ):
        assert (sets(partition) == channel).all()
        assert (channels(partition) == channel).all()
        assert partition.count == n * h * w


@given(sizes, st.integers(1, 3), st.integers(1, 3), sizes)
def test_group_norm_shares_by_sample_and_group(n: int, groups: int, width: int, places: int) -> None:
    """A set holds the neighbouring channels of one sample, in both layouts."""
    c = groups * width
    sample, channel, _ = np.indices((n, c, places))
    first = Partition.of_group((n, c, places), 1, groups)
    assert (sets(first) == (sample * groups + channel // width).ravel()).all()
    assert (channels(first) == channel.ravel()).all()

    sample, _, channel = np.indices((n, places, c))
    last = Partition.of_group((n, places, c), 2, groups)
    assert (sets(last) == (sample * groups + channel // width).ravel()).all()
    assert (channels(last) == channel.ravel()).all()


def test_instance_norm_is_group_norm_with_one_channel_a_group() -> None:
    """Instance norm has as many groups as channels."""
    assert Partition.of_instance((2, 6, 5), 1) == Partition.of_group((2, 6, 5), 1, 6)


def test_ghosts_cut_the_samples() -> None:
    """With k ghosts, each of k equal parts of the batch is a set of its own."""
    partition = Partition.of_batch((6, 3, 4), 1, ghosts=2)
    sample, channel, _ = np.indices((6, 3, 4))

    assert (sets(partition) == ((sample // 3) * 3 + channel).ravel()).all()


def test_layer_norm_shares_by_row() -> None:
    """A row of the last axes is a set; each of its elements has a weight of its own."""
    partition = Partition.of_layer((2, 3, 4, 5), 2)

    assert (sets(partition) == np.repeat(np.arange(6), 20)).all()
    assert (channels(partition) == np.tile(np.arange(20), 6)).all()


def test_layer_norm_over_leading_channels_shares_by_place() -> None:
    """Over the channels of NCHW every place of every sample is a set."""
    n, c, hw = 2, 3, 4
    sample, channel, place = np.indices((n, c, hw))
    partition = Partition.of_channels((n, c, hw), 1)

    assert (sets(partition) == (sample * hw + place).ravel()).all()
    assert (channels(partition) == channel.ravel()).all()


def test_positions_number_samples_and_places() -> None:
    """Elements that differ only in their channel lie at one position."""
    for partition, channel in (
        (Partition.of_batch((2, 3, 4), 1), np.indices((2, 3, 4))[1]),
        (Partition.of_batch((2, 4, 3), 2), np.indices((2, 4, 3))[2]),
    ):
        k, span = np.arange(partition.numel), partition.channels * partition.stride
        position = k // span * partition.stride + k % partition.stride

        assert sorted(set(position)) == list(range(partition.positions))
        for p in range(partition.positions):
            assert sorted(channel.ravel()[position == p]) == [0, 1, 2]


def test_an_empty_batch_has_no_elements() -> None:
    """Zero samples are legal."""
    partition = Partition.of_batch((0, 3, 4), 1)

    assert (partition.numel, partition.count, partition.sets) == (0, 0, 3)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    """The error names the numbers and the divisors."""
    with pytest.raises(ValueError, match=r"32 channels cannot split into 5 groups.*1, 2, 4, 8, 16, 32"):
        Partition.of_group((2, 32, 4), 1, 5)


def test_ghosts_that_do_not_divide_the_batch_are_refused() -> None:
    """Uneven parts are two partitions, not one."""
    with pytest.raises(ValueError, match="7 samples cannot split into 2 equal ghost batches"):
        Partition.of_batch((7, 3), 1, ghosts=2)
