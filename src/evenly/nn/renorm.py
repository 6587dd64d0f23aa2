"""Batch renormalization: small batches corrected towards the running statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evenly.backends.memory import statistics_dtype
from evenly.backends.running import Running
from evenly.core.moments import Moments


@dataclass(frozen=True)
class Renorm:
    """How far batch renormalization may correct a batch's statistics.

    ``xhat = (x - mean) / std * r + d`` with ``r = std / running_std`` kept within
    ``[1 / r_max, r_max]`` and ``d = (mean - running_mean) / running_std`` within
    ``[-d_max, d_max]``; no gradient flows through ``r`` and ``d``. Both bounds grow linearly
    from none (``r = 1``, ``d = 0``: plain batch norm) over the first ``warmup`` batches.

    Args:
        r_max: bound of the scale's correction, at least 1.
        d_max: bound of the shift's correction, in standard deviations.
        warmup: batches until the bounds are fully open; 0: from the first.

    Raises:
        ValueError: a bound is out of its range.

    Source:
        Ioffe, 2017, https://arxiv.org/abs/1702.03275

    Example:
        >>> import evenly
        >>> layer = evenly.BatchNorm2d(8, renorm=evenly.Renorm(r_max=3.0, d_max=5.0, warmup=1000))
    """

    r_max: float = 3.0
    d_max: float = 5.0
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.r_max < 1 or self.d_max < 0 or self.warmup < 0:
            raise ValueError(f"renorm needs r_max >= 1, d_max >= 0 and warmup >= 0, got {self}.")

    def corrections(self, moments: Moments, running: Running, eps: float) -> tuple[Tensor, Tensor]:
        """``r`` and ``d``, each of shape ``(channels,)``.

        Args:
            moments: of the batch, one set per channel.
            running: the running statistics before this batch enters them.
            eps: added to both variances.
        """
        opened: float | Tensor = 1.0
        if self.warmup and running.batches is not None:
            opened = (running.batches / self.warmup).clamp(max=1.0)
        r_max, d_max = 1 + opened * (self.r_max - 1), opened * self.d_max
        std = torch.sqrt(moments.var[0] + eps)
        running_std = torch.sqrt(running.var.to(std.dtype) + eps)
        r = std / running_std
        d = (moments.mean[0] - running.mean.to(std.dtype)) / running_std
        # A channel without values, or one that is not finite, is not corrected.
        known = torch.isfinite(r) & torch.isfinite(d) & torch.as_tensor(moments.count > 0, device=r.device).reshape(-1)
        r = torch.where(known, torch.minimum(torch.maximum(r, _like(1 / r_max, r)), _like(r_max, r)), 1)
        d = torch.where(known, torch.minimum(torch.maximum(d, _like(-d_max, d)), _like(d_max, d)), 0)
        return r, d

    def affine(
        self, moments: Moments, running: Running, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The weight and bias that apply ``r`` and ``d``: ``weight * r`` and ``weight * d + bias``."""
        with torch.no_grad():
            r, d = self.corrections(moments, running, eps)
        if weight is None:
            return r, d if bias is None else d + bias
        dtype = statistics_dtype(weight.dtype)
        scaled, shift = weight.to(dtype) * r, weight.to(dtype) * d
        return scaled, shift if bias is None else shift + bias


def _like(bound: float | Tensor, t: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=t.dtype, device=t.device)
