"""What goes into a kernel and what comes out of it: one record for each."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tensors(NamedTuple):
    """What a call brings besides its input.

    Args:
        weight: scale, shape ``(channels,)``; None for 1.
        bias: shift, shape ``(channels,)``; None for 0.
        residual: added before the activation; of the input's shape, type and memory order.
        mask: how much positions count: ``positions`` numbers in memory order (see
            `evenly.core.partition.Partition.positions`), or ``numel`` of them; elements of weight 0
            are not looked at.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    mask: Tensor | None = None


class Given(NamedTuple):
    """Statistics that are given, not measured (evaluation, frozen): mean and variance of each channel."""

    mean: Tensor
    var: Tensor


class Kept(NamedTuple):
    """What forward leaves for backward.

    Args:
        mean: shape ``(outer, group)``.
        rstd: ``1 / sqrt(var + eps)``, shape ``(outer, group)``.
        count: over how many elements the statistics were taken; with a mask, shape ``(outer, group)``.
        slope: what the activation's slope needs where it cannot be had from the input: the residual, or one
            bit an element (see `evenly.backends.reference.slope_of_bits`).
        measured: whether the statistics are the input's own, so that gradients flow through them.
        m2: sums of squared deviations, shape ``(outer, group)``; None unless asked for.
    """

    mean: Tensor
    rstd: Tensor
    count: int | Tensor  # type: ignore[assignment]  # the field's word, which tuples have, too
    slope: Tensor | None = None
    measured: bool = True
    m2: Tensor | None = None


class Wanted(NamedTuple):
    """Which gradients a backward is asked for; ``affine`` stands for those of weight and bias."""

    dx: bool = True
    affine: bool = True
    dresidual: bool = False


class Sums(NamedTuple):
    """What step 3 finds: two sums per statistic, and the gradients of weight and bias.

    Args:
        g: sum of ``weight * g``, shape ``(outer, group)``.
        gx: sum of ``weight * g * xhat``, shape ``(outer, group)``.
        dweight: sum of ``g * xhat``, shape ``(channels,)``.
        dbias: sum of ``g``, shape ``(channels,)``.
    """

    g: Tensor
    gx: Tensor
    dweight: Tensor
    dbias: Tensor


class Gradients(NamedTuple):
    """What a backward returns; None for what was not asked for."""

    dx: Tensor | None = None
    dweight: Tensor | None = None
    dbias: Tensor | None = None
    dresidual: Tensor | None = None
