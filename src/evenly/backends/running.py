"""Running statistics: the buffers a layer keeps, and how one batch enters them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evenly.core.moments import Moments
from evenly.core.running import Average


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
    """

    mean: Tensor
    var: Tensor
    average: Average
    batches: Tensor | None = None
    skipped: Tensor | None = None
    unbiased: bool = True
    skip_nonfinite: bool = True

    def factor(self) -> float | Tensor:
        """Weight of the batch at hand: a number, or a 0-d tensor where the counter decides it."""
        seen: float | Tensor = 1 if self.batches is None else (self.batches + 1).to(self.mean.dtype)
        return self.average(seen)  # type: ignore[arg-type]  # the averages are arithmetic: tensors pass


def update(running: Running, moments: Moments) -> None:
    """Enter one batch into the running statistics, without a host synchronisation.

    An empty batch (every count 0) or, with ``skip_nonfinite``, one with any non-finite statistic
    changes nothing but ``skipped``. The variance is written only where ``count > 1``, the mean
    where ``count > 0``. With several sets per channel (ghosts, samples) the mean of their
    statistics enters once.

    Args:
        running: the buffers and the rule.
        moments: of this batch; fields of shape ``(sets, channels)`` (``count`` may be a number).
    """
    with torch.no_grad():
        mean_oc, m2_oc = moments.mean, moments.m2
        count_oc = moments.count if isinstance(moments.count, Tensor) else torch.full_like(mean_oc, moments.count)
        divisor_oc = count_oc - 1 if running.unbiased else count_oc
        has_mean, has_var = count_oc > 0, (count_oc > 1 if running.unbiased else count_oc > 0)
        var_oc = torch.where(has_var, m2_oc / torch.where(has_var, divisor_oc, 1), 0)
        mean_c, any_mean = _mean_of_sets(mean_oc, has_mean)
        var_c, any_var = _mean_of_sets(var_oc, has_var)
        written = any_mean.any()
        if running.skip_nonfinite:
            finite = (torch.isfinite(mean_c) & torch.isfinite(var_c)).all()
            if running.skipped is not None:
                running.skipped.add_((written & ~finite).to(running.skipped.dtype))
            written = written & finite
        factor = running.factor()
        _blend(running.mean, mean_c, factor, any_mean & written)
        _blend(running.var, var_c, factor, any_var & written)
        if running.batches is not None:
            running.batches.add_(written.to(running.batches.dtype))


def _mean_of_sets(values_oc: Tensor, present_oc: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the sets that are present, and where there was any."""
    total_c = torch.where(present_oc, values_oc, 0).sum(0)
    number_c = present_oc.sum(0)
    return total_c / number_c.clamp(min=1), number_c > 0


def _blend(buffer: Tensor, value: Tensor, factor: float | Tensor, where: Tensor) -> None:
    """``buffer <- factor * value + (1 - factor) * buffer`` where ``where``."""
    blended = factor * value.to(buffer.dtype) + (1 - factor) * buffer
    buffer.copy_(torch.where(where, blended, buffer))
