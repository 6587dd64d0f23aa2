"""The one table of cases: family × shape × layout × dtype. Every backend is tested on all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evenly.core.activation import KINDS, Activation
from evenly.core.partition import Partition


@dataclass(frozen=True)
class Case:
    """One norm of one tensor.

    Args:
        name: what the test is called.
        shape: of the tensor, in memory order.
        partition: which of its elements share statistics.
        centered: False for RMS norm.
        masked: whether the norm takes a mask.
    """

    name: str
    shape: tuple[int, ...]
    partition: Partition
    centered: bool = True
    masked: bool = True

    def __str__(self) -> str:
        return self.name


def _batch(name: str, shape: tuple[int, ...], channel: int = 1, ghosts: int = 1) -> Case:
    return Case(f"batch-{name}", shape, Partition.of_batch(shape, channel, ghosts))


def _group(name: str, shape: tuple[int, ...], channel: int, groups: int) -> Case:
    return Case(f"group-{name}", shape, Partition.of_group(shape, channel, groups))


def _layer(name: str, shape: tuple[int, ...], ndim: int, centered: bool = True) -> Case:
    return Case(name, shape, Partition.of_layer(shape, ndim), centered, masked=False)


# Shapes are small, but reach every loop: long planes and short ones, those that end within a cache
# line or a register, odd widths (tails), few sets for many threads, narrow rows that are folded,
# rows longer than a tile, and one element of each.
CASES = (
    _batch("dense", (60, 100)),
    _batch("dense-wide", (3, 2500)),
    _batch("dense-tall", (1000, 3)),
    _batch("sequence", (4, 5, 37)),
    _batch("sequence-last", (4, 37, 5), channel=2),
    _batch("image", (3, 7, 9, 11)),
    _batch("image-long-planes", (3, 6, 40, 60)),
    _batch("image-short-planes", (16, 24, 7, 7)),
    _batch("image-medium-planes", (9, 8, 14, 14)),
    _batch("image-half-lines", (8, 3, 28, 28)),
    _batch("image-odd-planes", (10, 5, 13, 15)),
    _batch("image-one-channel", (8, 1, 33, 35)),
    _batch("image-three-channels", (2, 3, 64, 70)),
    _batch("image-last", (3, 9, 11, 7), channel=3),
    _batch("image-last-narrow", (4, 20, 30, 3), channel=3),
    _batch("image-last-wide", (2, 15, 13, 130), channel=3),
    _batch("image-middle", (3, 9, 7, 11), channel=2),
    _batch("volume", (2, 5, 4, 6, 10)),
    _batch("volume-last", (2, 4, 6, 10, 5), channel=4),
    _batch("one-sample", (1, 16, 8, 8)),
    _batch("ghosts", (6, 5, 8, 9), ghosts=3),
    _batch("ghosts-last", (6, 8, 9, 5), channel=3, ghosts=2),
    Case("instance", (3, 7, 9, 11), Partition.of_instance((3, 7, 9, 11))),
    Case("instance-last", (3, 9, 11, 7), Partition.of_instance((3, 9, 11, 7), channel=3)),
    Case("instance-long", (2, 3, 50, 50), Partition.of_instance((2, 3, 50, 50))),
    _group("image", (3, 12, 7, 5), 1, 4),
    _group("image-long", (2, 8, 30, 30), 1, 2),
    _group("image-last", (3, 7, 5, 12), 3, 4),
    _group("image-middle", (2, 7, 12, 5), 2, 3),
    _group("dense", (10, 12), 1, 3),
    _group("one", (5, 12, 9), 1, 1),
    _layer("layer", (20, 65), 1),
    _layer("layer-long", (3, 2500), 1),
    _layer("layer-three-axes", (4, 3, 5, 7), 3),
    _layer("rms", (20, 65), 1, centered=False),
    _layer("rms-long", (3, 2500), 1, centered=False),
    Case("channels", (3, 12, 7, 5), Partition.of_channels((3, 12, 7, 5)), masked=False),
)

ACTIVATIONS = tuple(Activation.of(name) for name in KINDS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Largest error of y and dx (numbers of order 1), and of sums over a set relative to its size.
# float64 sums in another order; float32 rounds each step; the half types round the result once.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Inputs:
    """Tensors for one case, in float64 and exactly representable in ``dtype``."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor
    dy: Tensor
    keep: Tensor
    weights: Tensor


def inputs(case: Case, dtype: torch.dtype, mean: float = 0.5) -> Inputs:
    """Random tensors from a fixed seed; away from activations' kinks is left to the tests."""
    generator = torch.Generator().manual_seed(20)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(of).double()

    channels, positions = case.partition.channels, case.partition.positions
    return Inputs(
        x=(draw(*case.shape) + mean).to(dtype).double(),
        weight=draw(channels, of=statistics) * 0.5 + 1,
        bias=draw(channels, of=statistics),
        residual=draw(*case.shape),
        dy=draw(*case.shape),
        keep=torch.rand(positions, generator=generator) < 0.7,
        weights=torch.randint(0, 4, (positions,), generator=generator).double() * 0.5,
    )
