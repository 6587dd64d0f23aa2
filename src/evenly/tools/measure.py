"""What reaches a norm, in numbers: moments of a call, pooled by count over data, and how far statistics are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from evenly.core.moments import Moments
from evenly.tools.sites import Site


@dataclass
class Pool:
    """Moments by site, merged over calls, in the order in which sites were first called.

    Args:
        moments: by site, float64, each field of shape ``(channels,)``.
        calls: how many calls entered, by site.
        skipped: how many were left out because a statistic was not finite, by site.
        samples: how many samples were run.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    def add(self, name: str, moments: Moments) -> None:
        """Merge one call's moments, unless they hold a NaN or infinity."""
        if not bool(torch.isfinite(moments.mean).all() & torch.isfinite(moments.m2).all()):
            self.skipped[name] = self.skipped.get(name, 0) + 1
            return
        self._merge(name, moments, 1)

    def _merge(self, name: str, moments: Moments, calls: int) -> None:
        before = self.moments.get(name)
        self.moments[name] = moments if before is None else before.merge(moments)
        self.calls[name] = self.calls.get(name, 0) + calls

    def update(self, other: Pool) -> None:
        """Merge another pool into this one; either may lack a site."""
        for name, moments in other.moments.items():
            self._merge(name, moments, other.calls[name])
        for name, number in other.skipped.items():
            self.skipped[name] = self.skipped.get(name, 0) + number
        self.samples += other.samples

    @property
    def lost(self) -> list[str]:
        """Sites whose every call was left out."""
        return [name for name in self.skipped if name not in self.moments]


def moments_of(x: Tensor, channel: int = 1, mask: Tensor | None = None) -> Moments:
    """Moments of each channel of ``x``; float64 fields of shape ``(channels,)``.

    Args:
        x: shape ``(N, C, *)`` (channels on axis ``channel``).
        channel: the channel axis.
        mask: which positions count, or how much, as evenly's layers take it: of ``x``'s rank, without the
            channel axis, or ``(N,)``.
    """
    with torch.no_grad():
        x, channel = x.detach(), channel % x.ndim
        axes = [axis for axis in range(x.ndim) if axis != channel]
        if mask is not None:
            return _weighted(x.double(), axes, _weights(mask.detach(), x, channel))
        channels = x.shape[channel]
        count = torch.full((channels,), x.numel() / max(channels, 1), dtype=torch.double, device=x.device)
        if not x.numel():
            return Moments(count, torch.zeros_like(count), torch.zeros_like(count))
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        # torch sums up float32 in float64 here, by Welford's update: far means cost no digits.
        var, mean = torch.var_mean(x, axes, correction=0) if axes else (torch.zeros_like(x), x)
        return Moments(count, mean.double(), var.double() * count)


def _weights(mask: Tensor, x: Tensor, channel: int) -> Tensor:
    if mask.ndim == 1 and x.ndim > 2:
        mask = mask.reshape(-1, *(1,) * (x.ndim - 2))
    if mask.ndim == x.ndim - 1:
        mask = mask.unsqueeze(channel)
    return mask.double().expand(x.shape)


def _weighted(x: Tensor, axes: list[int], weights: Tensor) -> Moments:
    count = weights.sum(axes)
    mean = torch.where(weights > 0, x * weights, 0).sum(axes) / count.clamp(min=1e-300)
    apart = x - mean.view([-1 if axis not in axes else 1 for axis in range(x.ndim)])
    return Moments(count, mean, torch.where(weights > 0, apart.square() * weights, 0).sum(axes))


def distance(site: Site, moments: Moments) -> Tensor:
    """How far running statistics are from measured ones, by channel.

    ``|running_mean - mean| / std + |log(running_std / std)|``, each std with the norm's eps, so
    that a channel that is constant in both does not count.
    """
    return apart(*site.read(), moments.mean, moments.var, site.eps)


def apart(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor, eps: float) -> Tensor:
    """The distance of one mean and variance from another, in the other's standard deviations."""
    std, other = (var.clamp(min=0) + eps).sqrt(), (other_var.clamp(min=0) + eps).sqrt()
    far: Tensor = (mean - other_mean).abs() / other + (std / other).log().abs()
    return far
