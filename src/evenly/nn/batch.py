"""Batch normalization from its arguments to the path: given statistics, small batches, ghosts, masks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from evenly.backends import reference
from evenly.backends.kernel import Sharing
from evenly.backends.records import Given, Tensors
from evenly.backends.running import Running, entered
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.nn import check, exported, ghosts
from evenly.nn.call import Call
from evenly.nn.enter import enter
from evenly.nn.layout import layout
from evenly.nn.mask import mask_in_memory
from evenly.nn.path import normalize
from evenly.nn.plan import Plan, Statistics, planned, remembered
from evenly.nn.settings import Settings, part_of_batch
from evenly.nn.situation import leaving, plain


class Corrects(Protocol):
    """Batch renormalization (`evenly.Renorm`, or Keras's)."""

    def affine(
        self, moments: Moments, running: Running, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The weight and bias that apply the corrections."""


def batch(
    x: Tensor,
    tensors: Tensors,
    statistics: Statistics,
    settings: Settings,
    sharing: Sharing | None = None,
    renorm: Corrects | None = None,
) -> Tensor:
    """Batch norm of ``x`` by its own statistics, or by given ones.

    Args:
        x: shape ``(N, C, *)`` (channels on axis ``settings.channel``).
        tensors: weight and bias of shape ``(C,)``; residual; mask as `evenly.nn.mask.mask_in_memory` takes it.
        statistics: what is given, or the buffers that what is measured enters, or None.
        settings: epsilon, activation and the rules for small batches.
        sharing: the processes that share statistics.
        renorm: in place of the settings' own.
    """
    renorm = settings.renorm if renorm is None else renorm
    if leaving() and tensors.mask is None and sharing is None and renorm is None:
        y = _exported(x, tensors, statistics, settings)
        if y is not None:
            return y
    weight, bias, residual, mask = tensors
    if residual is not None:
        x, residual = check.with_residual(x, residual)
        tensors = Tensors(weight, bias, residual, mask)
    plan = remembered(find, x, tensors, statistics, settings)
    partition = plan.kernel.norm.partition
    measured = not isinstance(statistics, Given)
    if measured and sharing is None and partition.count == 1 and partition.channels:
        statistics = one_value(x, settings.single, statistics)
    if plan.uneven:
        return _uneven(x, tensors, statistics, settings, plan)
    if not plan.dense:
        x = x.contiguous()
    if mask is not None:
        tensors = Tensors(weight, bias, residual, mask_in_memory(mask, x, plan.channel, plan.kernel.order))
    if renorm is not None and isinstance(statistics, Running):
        moments = _moments(x, plan, tensors.mask, sharing)
        weight, bias = renorm.affine(moments, statistics, plan.norm.eps, weight, bias)
        tensors = Tensors(weight, bias, *tensors[2:])
    if isinstance(statistics, Running) and not statistics.enters:
        statistics = None
    return normalize(x, tensors, Call(plan, statistics, sharing, settings.inplace))


def find(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> Plan:
    """How batch norm reads ``x``."""
    channel, parts = _checked(x, tensors, statistics, settings)
    uneven = parts if parts > 1 and x.shape[0] % parts else 0
    lies = layout(x, channel, samples_first=parts > 1)
    partition = Partition.of_batch(lies.shape, lies.channel, 1 if uneven else parts)
    return planned(x, settings, partition, lies, uneven=uneven)


def _checked(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> tuple[int, int]:
    """Refuse what does not fit; the channel axis from the front, and how many ghosts there will be."""
    check.check_input(x)
    if x.ndim < 2:
        raise ValueError(f"batch norm expects input of at least 2 axes (N, C, *), got shape {tuple(x.shape)}.")
    assert settings.channel is not None and settings.eps is not None
    measured = not isinstance(statistics, Given)
    channel = settings.channel % x.ndim
    check.check_batch_eps(settings.eps, training=measured)
    mean, var = (None, None) if statistics is None else (statistics.mean, statistics.var)
    check.check_channels(
        x, channel, ("weight", tensors.weight), ("bias", tensors.bias), ("running_mean", mean), ("running_var", var)
    )
    return channel, check.check_ghosts(x, channel, settings.parts if measured else 1)


def _exported(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> Tensor | None:
    """By torch's operators, or None where they have no way to say it."""
    channel, parts = _checked(x, tensors, statistics, settings)
    x, residual = check.with_residual(x, tensors.residual)
    if not isinstance(statistics, Given) and check.one_value_per_channel(x, channel):
        statistics = one_value(x, settings.single, statistics)
    if parts > 1:
        return None
    assert settings.eps is not None
    if isinstance(statistics, Running) and not statistics.enters:
        statistics = None
    y = exported.batch_norm(x, tensors.weight, tensors.bias, settings.eps, statistics, channel)
    return y if y is None else exported.finish(y, residual, settings.activation)


def one_value(x: Tensor, policy: str, statistics: Statistics) -> Statistics:
    """What one value per channel is normalised by, and what it enters: nothing."""
    if policy == "running" and isinstance(statistics, Running):
        return Given(statistics.mean, statistics.var)
    if policy == "skip":
        return None
    if policy == "pass":
        return statistics
    raise check.one_value_error(x)


def _uneven(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings, plan: Plan) -> Tensor:
    """Ghosts that do not divide the batch: as torch.tensor_split cuts, the first parts one sample longer."""
    parts = list(ghosts.cut(x, tensors, plan.uneven, plan.channel))
    y = torch.cat([batch(part, own, None, part_of_batch(settings, number)) for part, own, number in parts])
    if isinstance(statistics, Running) and statistics.enters:
        enter(statistics, _of_all(parts, plan.channel, settings))
    return y


def statistics_after(x: Tensor, tensors: Tensors, running: Running, settings: Settings) -> tuple[Tensor, Tensor]:
    """The running mean and variance after the batch ``x``; nothing is changed in place."""
    channel, parts = _checked(x, tensors, running, settings)
    if check.one_value_per_channel(x, channel):
        return running.mean, running.var
    cut = list(ghosts.cut(x, tensors, parts, channel))
    with torch.no_grad():
        return entered(running, _of_all(cut, channel, settings))[:2]


def moments(x: Tensor, channel: int = 1, mask: Tensor | None = None) -> Moments:
    """Count, mean and m2 of each channel of ``x``, without gradient; fields of shape ``(1, C)``.

    Args:
        x: shape ``(N, C, *)`` (channels on axis ``channel``).
        channel: the channel axis.
        mask: which positions count, or how much, as the layers take it.
    """
    return _of_all([(x, Tensors(mask=mask), 1)], channel % x.ndim, Settings("batch", 1.0))


def _of_all(parts: list[ghosts.Part], channel: int, settings: Settings) -> Moments:
    """The moments of every ghost, fields of shape ``(ghosts, channels)``."""
    every = []
    for part, tensors, number in parts:
        x = part.detach()
        lies = layout(x, channel, samples_first=number > 1)
        mask = None if tensors.mask is None else mask_in_memory(tensors.mask, x, channel, lies.order)
        plan = planned(x, settings, Partition.of_batch(lies.shape, lies.channel, number), lies)
        m = _moments(x if lies.dense else x.contiguous(), plan, mask)
        every.append(m if isinstance(m.count, Tensor) else Moments(torch.full_like(m.mean, m.count), m.mean, m.m2))
    return Moments(*(torch.cat([getattr(m, field) for m in every]) for field in ("count", "mean", "m2")))


def _moments(x: Tensor, plan: Plan, mask: Tensor | None, sharing: Sharing | None = None) -> Moments:
    """The moments alone, without gradient; of all processes where they share."""
    with torch.no_grad():
        kernel = plan.kernel if plain(x, mask) else reference.Kernel(plan.norm, plan.order)
        found = kernel.moments(x.detach(), mask)
        return found if sharing is None else sharing.merge(found)
