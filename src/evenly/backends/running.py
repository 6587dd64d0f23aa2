"""Running statistics: the buffers a layer keeps, and how one batch enters them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evenly.core.moments import Moments
from evenly.core.running import Average


class Pending(NamedTuple):
    """Micro-batches whose moments are pooled before they enter the running statistics as one batch.

    Args:
        every: how many micro-batches make one batch.
        seen: how many have been pooled so far, 0-d int64; written in place, as all that follow.
        counts: pooled count, shape ``(channels,)``.
        mean: pooled mean, shape ``(channels,)``.
        m2: pooled sum of squared deviations, shape ``(channels,)``.
    """

    every: int
    seen: Tensor
    counts: Tensor
    mean: Tensor
    m2: Tensor


class Running(NamedTuple):
    """The running statistics of a layer, and the rule by which a batch enters them.

    Args:
        mean: running mean, shape ``(channels,)``; written in place.
        var: running variance, shape ``(channels,)``; written in place.
        average: from "batches seen, this one included" to "weight of this batch".
        batches: how many batches were written, 0-d int64; None: not counted.
        skipped: how many were skipped because they were not finite, 0-d int64; None: not counted.
        unbiased: whether the unbiased variance is averaged (PyTorch) or the biased (Keras).
        skip_nonfinite: whether a batch with a NaN or infinity is left out as a whole.
        pending: micro-batches waiting to be pooled; None: every batch enters at once.
        enters: whether the batch enters at all; else the buffers are only looked at.
    """

    mean: Tensor
    var: Tensor
    average: Average
    batches: Tensor | None = None
    skipped: Tensor | None = None
    unbiased: bool = True
    skip_nonfinite: bool = True
    pending: Pending | None = None
    enters: bool = True

    def factor(self) -> float | Tensor:
        """Weight of the batch at hand: a number, or a 0-d tensor where the counter decides it."""
        seen: float | Tensor = 1 if self.batches is None else (self.batches + 1).to(self.mean.dtype)
        return self.average(seen)  # type: ignore[arg-type]  # the averages are arithmetic: tensors pass


def update(running: Running, moments: Moments, live: Tensor | None = None) -> None:
    """Enter one batch into the running statistics, without a host synchronisation.

    An empty batch (every count 0) or, with ``skip_nonfinite``, one with any non-finite statistic
    changes nothing but ``skipped``. The variance is written only where ``count > 1``, the mean
    where ``count > 0``. With several sets per channel (ghosts, samples) the mean of their
    statistics enters once.

    Args:
        running: the buffers and the rule.
        moments: of this batch; fields of shape ``(sets, channels)`` (``count`` may be a number).
        live: 0-d bool; False leaves everything as it is (a recompute inside a compiled graph).
    """
    with torch.no_grad():
        due = torch.ones((), dtype=torch.bool, device=running.mean.device) if live is None else live
        if running.pending is not None:
            moments, due = _pool(running, running.pending, moments, due)
        mean, var, written, skipped = entered(running, moments)
        written, skipped = written & due, skipped & due
        running.mean.copy_(torch.where(written, mean, running.mean))
        running.var.copy_(torch.where(written, var, running.var))
        if running.skipped is not None and running.pending is None:
            running.skipped.add_(skipped.to(running.skipped.dtype))
        if running.batches is not None:
            running.batches.add_(written.to(running.batches.dtype))


def entered(running: Running, moments: Moments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The running mean and variance after this batch, and whether it was written or skipped.

    Nothing is changed in place. Where the batch says nothing of a channel, the old value is
    returned; the two flags (0-d bool) speak of the batch as a whole.
    """
    mean_oc, m2_oc = moments.mean, moments.m2
    count_oc = moments.count if isinstance(moments.count, Tensor) else torch.full_like(mean_oc, moments.count)
    divisor_oc = count_oc - 1 if running.unbiased else count_oc
    has_mean, has_var = count_oc > 0, divisor_oc > 0
    var_oc = torch.where(has_var, m2_oc / torch.where(has_var, divisor_oc, 1), 0)
    mean_c, any_mean = _mean_of_sets(mean_oc, has_mean)
    var_c, any_var = _mean_of_sets(var_oc, has_var)
    written = any_mean.any()
    skipped = torch.zeros_like(written)
    if running.skip_nonfinite:
        finite = (torch.isfinite(mean_c) & torch.isfinite(var_c)).all()
        written, skipped = written & finite, written & ~finite
    factor = running.factor()
    mean = _blend(running.mean, mean_c, factor, any_mean & written)
    var = _blend(running.var, var_c, factor, any_var & written)
    return mean, var, written, skipped


def _pool(running: Running, pending: Pending, moments: Moments, live: Tensor) -> tuple[Moments, Tensor]:
    """Merge one micro-batch into those pending; their moments, and whether they are complete now."""
    dtype = pending.mean.dtype
    mean_oc, m2_oc = moments.mean.to(dtype), moments.m2.to(dtype)
    count_oc = torch.as_tensor(moments.count, dtype=dtype, device=mean_oc.device).expand_as(mean_oc)
    finite = (torch.isfinite(mean_oc) & torch.isfinite(m2_oc)).all()
    finite = finite | (not running.skip_nonfinite)
    use = finite & live
    pooled = Moments(pending.counts, pending.mean, pending.m2)
    for one in range(mean_oc.shape[0]):
        pooled = pooled.merge(Moments(count_oc[one], mean_oc[one], m2_oc[one]))
    pooled = Moments(
        torch.where(use, pooled.count, pending.counts),
        torch.where(use, pooled.mean, pending.mean),
        torch.where(use, pooled.m2, pending.m2),
    )
    seen = pending.seen + live.to(pending.seen.dtype)
    due = (seen >= pending.every) & live
    for buffer, value in zip(pending[1:], (seen, pooled.count, pooled.mean, pooled.m2), strict=True):
        buffer.copy_(torch.where(due, 0, value))
    if running.skipped is not None:
        running.skipped.add_((~finite & live & (count_oc > 0).any()).to(running.skipped.dtype))
    return Moments(pooled.count[None], pooled.mean[None], pooled.m2[None]), due


def _mean_of_sets(values_oc: Tensor, present_oc: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the sets that are present, and where there was any."""
    total_c = torch.where(present_oc, values_oc, 0).sum(0)
    number_c = present_oc.sum(0)
    return total_c / number_c.clamp(min=1), number_c > 0


def _blend(buffer: Tensor, value: Tensor, factor: float | Tensor, where: Tensor) -> Tensor:
    """``factor * value + (1 - factor) * buffer`` where ``where``, else ``buffer``."""
    return torch.where(where, factor * value.to(buffer.dtype) + (1 - factor) * buffer, buffer)
