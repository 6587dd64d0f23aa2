"""Which elements of a tensor share one mean and one variance.

Merge neighbouring axes of equal role, and every norm of the family, channels first or last,
is the tensor seen as ``x[outer, batch, group, inner]`` in memory order: statistics belong to
``(outer, group)`` and are taken over ``(batch, inner)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Partition:
    """A tensor seen as ``x[outer, batch, group, inner]``, in memory order.

    One mean and variance belong to each ``(outer, group)``; they are taken over
    ``(batch, inner)``. Element ``k`` of the flat tensor uses weight and bias
    ``(k // stride) % channels``.

    Args:
        outer: how often the pattern of statistics repeats (samples, ghosts, rows).
        batch: the axis before ``group`` over which statistics are taken.
        group: how many statistics lie side by side (channels, groups of channels).
        inner: the axis after ``group`` over which statistics are taken.
        channels: length of weight and bias.
        stride: distance in memory between neighbouring channels.

    Example:
        >>> Partition.of_batch((32, 64, 56, 56), channel=1)
        Partition(outer=1, batch=32, group=64, inner=3136, channels=64, stride=3136)
        >>> Partition.of_batch((32, 56, 56, 64), channel=3)
        Partition(outer=1, batch=100352, group=64, inner=1, channels=64, stride=1)
    """

    outer: int
    batch: int
    group: int
    inner: int
    channels: int
    stride: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The view ``(outer, batch, group, inner)`` of the flat tensor."""
        return (self.outer, self.batch, self.group, self.inner)

    @property
    def numel(self) -> int:
        """How many elements the tensor has."""
        return self.outer * self.batch * self.group * self.inner

    @property
    def sets(self) -> int:
        """How many means and variances there are."""
        return self.outer * self.group

    @property
    def count(self) -> int:
        """How many elements share one mean and variance."""
        return self.batch * self.inner

    @property
    def positions(self) -> int:
        """How many positions (sample and place, all channels together) a mask weighs.

        Element ``k`` lies at position ``(k // (channels * stride)) * stride + k % stride``.
        """
        return self.numel // self.channels if self.channels else 0

    @classmethod
    def of_batch(cls, shape: Sequence[int], channel: int = 1, ghosts: int = 1) -> Partition:
        """Batch norm: one mean per channel, over samples and places; ``n c *s -> c``.

        ``shape`` is the tensor's shape in memory order and ``channel`` the axis of the channels
        in it. With ``ghosts`` the samples (axis 0) are cut into that many equal parts, each with
        statistics of its own; ``ghosts`` must divide the number of samples.
        """
        before, channels, after = _around(shape, channel)
        if ghosts != 1 and (channel == 0 or shape[0] % ghosts):
            raise ValueError(
                f"{shape[0]} samples cannot split into {ghosts} equal ghost batches; "
                "cut the batch first, as torch.tensor_split does."
            )
        return cls(ghosts, before // ghosts, channels, after, channels, after)

    @classmethod
    def of_group(cls, shape: Sequence[int], channel: int, groups: int) -> Partition:
        """Group norm: one mean per sample and group of channels; ``n (g c) *s -> n g``."""
        before, channels, after = _around(shape, channel)
        if groups < 1 or channels % groups:
            divisors = ", ".join(str(d) for d in range(1, channels + 1) if channels % d == 0)
            raise ValueError(
                f"{channels} channels cannot split into {groups} groups; groups must divide channels ({divisors})."
            )
        samples = shape[0] if channel else 1
        places = before // samples if samples else 0
        return cls(samples, places, groups, channels // groups * after, channels, after)

    @classmethod
    def of_instance(cls, shape: Sequence[int], channel: int = 1) -> Partition:
        """Instance norm: one mean per sample and channel; ``n c *s -> n c``."""
        return cls.of_group(shape, channel, shape[channel])

    @classmethod
    def of_layer(cls, shape: Sequence[int], ndim: int) -> Partition:
        """Layer and RMS norm: one mean per row of the last ``ndim`` axes; ``*n d -> *n``."""
        rows, width = prod(shape[: len(shape) - ndim]), prod(shape[len(shape) - ndim :])
        return cls(rows, 1, 1, width, width, 1)

    @classmethod
    def of_channels(cls, shape: Sequence[int], channel: int = 1) -> Partition:
        """Layer norm over the channels alone, at every place; ``n c *s -> n *s``."""
        before, channels, after = _around(shape, channel)
        return cls(before, channels, after, 1, channels, after)


def _around(shape: Sequence[int], channel: int) -> tuple[int, int, int]:
    return prod(shape[:channel]), shape[channel], prod(shape[channel + 1 :])
