"""Batch normalization between the door and the path: ghosts, masks, given statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly import backends
from evenly.backends.running import Running, update
from evenly.core.activation import IDENTITY, Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.nn import check
from evenly.nn.layout import layout, mask_in_memory
from evenly.nn.normalize import Call, Given, normalize


class Extras(NamedTuple):
    """What a norm takes besides its own arguments.

    Args:
        activation: applied last.
        residual: added before the activation; of the input's shape.
        mask: which positions count, or how much.
        zero_masked: whether the output is 0 where the mask is.
    """

    activation: Activation = IDENTITY
    residual: Tensor | None = None
    mask: Tensor | None = None
    zero_masked: bool = False

    def tensors(self, x: Tensor, channel: int, order: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Residual and mask, checked against ``x``; the mask as weights in memory order."""
        check.check_residual(x, self.residual)
        mask = None if self.mask is None else mask_in_memory(self.mask, x, channel, order)
        return self.residual, mask


def batch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    *,
    given: tuple[Tensor, Tensor] | None = None,
    running: Running | None = None,
    ghosts: int = 1,
    channel: int = 1,
    group: Any = None,
    single: str = "error",
) -> Tensor:
    """Batch norm of ``x`` by its own statistics, or by the ``given`` (mean, var).

    Args:
        x: shape ``(N, C, *)`` (channels on axis ``channel``).
        weight: shape ``(C,)``.
        bias: shape ``(C,)``.
        eps: added to the variance.
        extras: activation, residual, mask.
        given: mean and variance to use, each of shape ``(C,)``; None measures.
        running: buffers that the measured statistics enter.
        ghosts: parts of the batch with statistics of their own; more parts than samples gives
            one each.
        channel: the channel axis.
        group: the processes that share statistics (see `evenly.nn.normalize.Call`).
        single: ``"error"`` refuses one value per channel; anything else lets it pass.
    """
    check.check_input(x)
    if x.ndim < 2:
        raise ValueError(f"batch norm expects input of at least 2 axes (N, C, *), got shape {tuple(x.shape)}.")
    channel = channel % x.ndim
    check.check_batch_eps(eps, training=given is None)
    named = ("running_mean", given[0] if given else running.mean if running else None)
    check.check_channels(x, channel, ("weight", weight), ("bias", bias), named)
    if given is None and single == "error" and group is None and extras.mask is None:
        check.check_values_per_channel(x, channel)
    ghosts = min(ghosts, x.shape[0]) if given is None else 1
    if ghosts > 1 and x.shape[0] % ghosts:
        return _uneven(x, weight, bias, eps, extras, running, ghosts, channel)
    x, shape, at, order = layout(x, channel, samples_first=ghosts > 1)
    call = Call(Partition.of_batch(shape, at, max(ghosts, 1)), eps, extras.activation, True, extras.zero_masked, group)
    statistics = None if given is None else _given(*given, eps, x)
    return normalize(x, call, weight, bias, *extras.tensors(x, channel, order), statistics, running)


def _given(mean: Tensor, var: Tensor, eps: float, x: Tensor) -> Given:
    """Given statistics in the type of statistics, as ``(1, channels)``."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return Given(mean.to(dtype)[None], torch.rsqrt(var.to(dtype) + eps)[None])


def _uneven(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    running: Running | None,
    ghosts: int,
    channel: int,
) -> Tensor:
    """Ghosts that do not divide the batch: as torch.tensor_split cuts, the first parts one sample longer."""
    if extras.mask is not None and extras.mask.ndim == x.ndim - 1:
        extras = extras._replace(mask=extras.mask.unsqueeze(channel))
    samples, longer = x.shape[0], x.shape[0] % ghosts
    cut = longer * (samples // ghosts + 1)
    outputs, statistics = [], []
    for part, parts in ((slice(0, cut), longer), (slice(cut, samples), ghosts - longer)):
        these = extras._replace(
            residual=None if extras.residual is None else extras.residual[part],
            mask=_part(extras.mask, part, samples),
        )
        outputs.append(batch(x[part], weight, bias, eps, these, ghosts=parts, channel=channel, single="pass"))
        if running is not None:
            statistics.append(_moments(x[part], these, parts, channel))
    if running is not None:
        update(running, Moments(*(torch.cat([getattr(m, f) for m in statistics]) for f in ("count", "mean", "m2"))))
    return torch.cat(outputs)


def _part(mask: Tensor | None, part: slice, samples: int) -> Tensor | None:
    return mask if mask is None or mask.shape[0] != samples else mask[part]


def _moments(x: Tensor, extras: Extras, ghosts: int, channel: int) -> Moments:
    """The moments alone, with ``count`` as a tensor of the same shape."""
    with torch.no_grad():
        x, shape, at, order = layout(x.detach(), channel, samples_first=True)
        _, mask = extras._replace(residual=None).tensors(x, channel, order)
        m = backends.choose(x).moments(x, Partition.of_batch(shape, at, ghosts), mask)
        count = m.count if isinstance(m.count, Tensor) else torch.full_like(m.mean, m.count)
        return Moments(count, m.mean, m.m2)
