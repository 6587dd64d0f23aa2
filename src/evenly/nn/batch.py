"""Batch normalization between the door and the path: ghosts, masks, small batches, given statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly import backends
from evenly.backends import reference
from evenly.backends.running import Running, entered
from evenly.core.activation import IDENTITY, Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.layout import layout
from evenly.nn.mask import mask_in_memory
from evenly.nn.normalize import Call, Given, enter, normalize, normalize_by_pair, plain
from evenly.nn.plan import Plan, pair_for, remembered
from evenly.nn.renorm import Renorm


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

    def with_input(self, x: Tensor) -> tuple[Tensor, Extras]:
        """Input and residual in their common type, as torch's addition would have them."""
        check.check_residual(x, self.residual)
        if self.residual is None or self.residual.dtype == x.dtype:
            return x, self
        dtype = torch.promote_types(x.dtype, self.residual.dtype)
        return x.to(dtype), self._replace(residual=self.residual.to(dtype))


class Small(NamedTuple):
    """What batch norm does with batches that say little.

    Args:
        single: one value per channel: ``"error"``, ``"skip"`` (normalised to 0, not entered into the
            running statistics), ``"running"`` (normalised by the running statistics) or ``"pass"``
            (as any other batch: for a part of one, and for Keras).
        ghosts: parts of the batch with statistics of their own; at most as many as there are
            samples, or pairs of samples where a sample has one value per channel.
        renorm: correction towards the running statistics, or None.
    """

    single: str = "error"
    ghosts: int = 1
    renorm: Renorm | None = None


def batch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    *,
    given: tuple[Tensor, Tensor] | None = None,
    running: Running | None = None,
    small: Small = Small(),  # noqa: B008  # an immutable record
    channel: int = 1,
    group: Any = None,
    inplace: bool = False,
    writes: bool = True,
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
        small: what to do with small batches.
        channel: the channel axis.
        group: the processes that share statistics (see `evenly.nn.normalize.Call`).
        inplace: whether the output may be saved in place of the input.
        writes: whether the measured statistics enter ``running``, which is else only looked at.
    """
    if exported.leaving() and extras.mask is None and group is None and small.renorm is None:
        y = _exported(x, weight, bias, eps, extras, given, running if writes else None, small, channel)
        if y is not None:
            return y
    ghosts, kept = (small.ghosts, running) if given is None else (1, None)
    mean = given[0] if given is not None else running.mean if running is not None else None
    plan = remembered(_plan, x, weight, bias, mean, channel, ghosts, eps, given is None, extras.activation)
    if extras.residual is not None:
        x, extras = extras.with_input(x)
    partition, channel, order, dense, uneven, pair = plan
    if given is None and group is None and partition.count == 1 and partition.channels:
        given, kept = _single(x, small.single, running)
    if uneven:
        return _uneven(x, weight, bias, eps, extras, kept if writes else None, uneven, channel)
    if not dense:
        x = x.contiguous()
    residual, mask, zeroes = extras.residual, extras.mask, extras.zero_masked
    if mask is not None:
        mask = mask_in_memory(mask, x, channel, order)
    if small.renorm is not None and given is None and kept is not None:
        weight, bias = small.renorm.affine(_moments(x, partition, mask, group), kept, eps, weight, bias)
    call = Call(partition, eps, extras.activation, True, zeroes, group, inplace, pair)
    if given is not None and residual is None and mask is None:
        y = normalize_by_pair(x, call, weight, bias, *given)
        if y is not None:
            return y
    statistics = None if given is None else _given(*given, eps, x)
    return normalize(x, call, weight, bias, residual, mask, statistics, kept if writes else None)


def _door(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    channel: int,
    ghosts: int,
    eps: float,
    training: bool,
) -> tuple[int, int]:
    """Refuse what does not fit; the channel axis from the front, and how many ghosts there will be."""
    check.check_input(x)
    if x.ndim < 2:
        raise ValueError(f"batch norm expects input of at least 2 axes (N, C, *), got shape {tuple(x.shape)}.")
    channel = channel % x.ndim
    check.check_batch_eps(eps, training)
    check.check_channels(x, channel, ("weight", weight), ("bias", bias), ("running_mean", mean))
    return channel, check.check_ghosts(x, channel, ghosts)


def _plan(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    channel: int,
    ghosts: int,
    eps: float,
    training: bool,
    activation: Activation,
) -> Plan:
    """How batch norm reads ``x``."""
    channel, ghosts = _door(x, weight, bias, mean, channel, ghosts, eps, training)
    uneven = ghosts if ghosts > 1 and x.shape[0] % ghosts else 0
    lies = layout(x, channel, samples_first=ghosts > 1)
    partition = Partition.of_batch(lies.shape, lies.channel, 1 if uneven else ghosts)
    pair = pair_for(x, partition, lies.dense, activation, eps)
    return Plan(partition, channel, lies.order, lies.dense, uneven, pair)


def _exported(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    given: tuple[Tensor, Tensor] | None,
    running: Running | None,
    small: Small,
    channel: int,
) -> Tensor | None:
    """By torch's operators, or None where they have no way to say it."""
    ghosts = small.ghosts if given is None else 1
    mean = given[0] if given is not None else running.mean if running is not None else None
    channel, ghosts = _door(x, weight, bias, mean, channel, ghosts, eps, given is None)
    x, extras = extras.with_input(x)
    if given is None and check.one_value_per_channel(x, channel):
        given, running = _single(x, small.single, running)
    y = None if ghosts > 1 else exported.batch_norm(x, weight, bias, eps, given, running, channel)
    return y if y is None else exported.finish(y, extras.residual, extras.activation)


def _single(x: Tensor, policy: str, running: Running | None) -> tuple[tuple[Tensor, Tensor] | None, Running | None]:
    """What one value per channel is normalised by, and what it enters: nothing."""
    if policy == "running" and running is not None:
        return (running.mean, running.var), None
    if policy in ("skip", "pass"):
        return None, running if policy == "pass" else None
    raise check.one_value_error(x)


def _given(mean: Tensor, var: Tensor, eps: float, x: Tensor) -> Given:
    """Given statistics in the type of statistics, as ``(1, channels)``; a batch may be entered before backward."""
    dtype = reference.statistics_dtype(x.dtype)
    mean = mean.to(dtype, copy=torch.is_grad_enabled())
    return Given(mean.unsqueeze(0), torch.rsqrt(var.to(dtype) + eps).unsqueeze(0))


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
    outputs = []
    for part, these, parts in _parts(x, extras, ghosts, channel):
        outputs.append(batch(part, weight, bias, eps, these, small=Small("pass", parts), channel=channel))
    if running is not None:
        enter(running, _sets(x, extras, ghosts, channel))
    return torch.cat(outputs)


def statistics_after(x: Tensor, running: Running, extras: Extras, small: Small, channel: int) -> tuple[Tensor, Tensor]:
    """The running mean and variance after the batch ``x``; nothing is changed in place."""
    channel = channel % x.ndim
    ghosts = check.check_ghosts(x, channel, small.ghosts)
    if check.one_value_per_channel(x, channel):
        return running.mean, running.var
    with torch.no_grad():
        return entered(running, _sets(x, extras, ghosts, channel))[:2]


def _parts(x: Tensor, extras: Extras, ghosts: int, channel: int) -> Iterator[tuple[Tensor, Extras, int]]:
    """The batch cut in two, each half of which ``ghosts`` parts divide: tensor, extras, number of parts."""
    if extras.mask is not None and extras.mask.ndim == x.ndim - 1:
        extras = extras._replace(mask=extras.mask.unsqueeze(channel))
    samples, longer = x.shape[0], x.shape[0] % ghosts
    cut = longer * (samples // ghosts + 1)
    for part, parts in ((slice(0, cut), longer), (slice(cut, samples), ghosts - longer)):
        mask, residual = extras.mask, extras.residual
        if mask is not None and mask.shape[0] == samples:
            mask = mask[part]
        if parts:
            yield x[part], extras._replace(mask=mask, residual=None if residual is None else residual[part]), parts


def _sets(x: Tensor, extras: Extras, ghosts: int, channel: int) -> Moments:
    """The moments of every ghost, fields of shape ``(ghosts, channels)``."""
    every = []
    for part, these, parts in _parts(x.detach(), extras, ghosts, channel):
        shape, at, order, dense = layout(part, channel, samples_first=parts > 1)
        mask = None if these.mask is None else mask_in_memory(these.mask, part, channel, order)
        m = _moments(part if dense else part.contiguous(), Partition.of_batch(shape, at, parts), mask)
        every.append(m if isinstance(m.count, Tensor) else Moments(torch.full_like(m.mean, m.count), m.mean, m.m2))
    return Moments(*(torch.cat([getattr(m, field) for m in every]) for field in ("count", "mean", "m2")))


def _moments(x: Tensor, partition: Partition, mask: Tensor | None, group: Any = None) -> Moments:
    """The moments alone, without gradient; of all processes of ``group``."""
    with torch.no_grad():
        steps = backends.choose(x) if plain(x, mask) else reference
        moments: Moments = steps.moments(x.detach(), partition, mask)
        return moments if group is None else group.merge(moments)
