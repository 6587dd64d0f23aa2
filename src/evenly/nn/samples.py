"""Instance and group normalization between the door and the path: statistics of each sample."""

from __future__ import annotations

from math import prod

from torch import Tensor

from evenly.backends.running import Running
from evenly.core.activation import Activation
from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.batch import Extras
from evenly.nn.layout import layout
from evenly.nn.mask import mask_in_memory
from evenly.nn.normalize import Call, normalize
from evenly.nn.plan import Plan, pair_for, remembered


def instance(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    *,
    running: Running | None = None,
    channel: int = 1,
) -> Tensor:
    """Instance norm of ``x`` by its own statistics (arguments as in `evenly.nn.batch.batch`)."""
    if exported.leaving() and extras.mask is None:
        channel = _instance_door(x, weight, bias, running.mean if running else None, channel, eps)
        x, extras = extras.with_input(x)
        y = exported.instance_norm(x, weight, bias, eps, running, channel)
        return exported.finish(y, extras.residual, extras.activation)
    mean, activation = None if running is None else running.mean, extras.activation
    plan = remembered(_instance_plan, x, weight, bias, mean, channel, eps, activation)
    return _planned(x, plan, weight, bias, eps, extras, running)


def _instance_door(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, channel: int, eps: float
) -> int:
    """Refuse what does not fit; the channel axis, from the front."""
    check.check_input(x)
    channel = channel % x.ndim
    check.check_spatial(x, channel)
    check.check_batch_eps(eps, training=False)
    check.check_channels(x, channel, ("weight", weight), ("bias", bias), ("running_mean", mean))
    return channel


def _instance_plan(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    channel: int,
    eps: float,
    activation: Activation,
) -> Plan:
    channel = _instance_door(x, weight, bias, mean, channel, eps)
    shape, at, order, dense = layout(x, channel, samples_first=True)
    partition = Partition.of_instance(shape, at)
    return Plan(partition, channel, order, dense, pair=pair_for(x, partition, dense, activation, eps))


def group(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    *,
    channel: int = 1,
) -> Tensor:
    """Group norm of ``x`` (arguments as in `evenly.functional.group_norm`)."""
    if exported.leaving() and extras.mask is None:
        channel = _group_door(x, weight, bias, channel, groups)
        x, extras = extras.with_input(x)
        y = exported.group_norm(x, groups, weight, bias, eps, channel)
        return exported.finish(y, extras.residual, extras.activation)
    plan = remembered(_group_plan, x, weight, bias, None, channel, groups, eps, extras.activation)
    return _planned(x, plan, weight, bias, eps, extras)


def _group_door(x: Tensor, weight: Tensor | None, bias: Tensor | None, channel: int, groups: int) -> int:
    """Refuse what does not fit; the channel axis, from the front."""
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    check.check_input(x)
    channel = channel % x.ndim
    check.check_channels(x, channel, ("weight", weight), ("bias", bias))
    if x.numel() == groups and prod(x.shape) == x.shape[0] * groups:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    return channel


def _group_plan(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: None,
    channel: int,
    groups: int,
    eps: float,
    activation: Activation,
) -> Plan:
    channel = _group_door(x, weight, bias, channel, groups)
    shape, at, order, dense = layout(x, channel, samples_first=True)
    partition = Partition.of_group(shape, at, groups)
    return Plan(partition, channel, order, dense, pair=pair_for(x, partition, dense, activation, eps))


def _planned(
    x: Tensor,
    plan: Plan,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    running: Running | None = None,
) -> Tensor:
    if extras.residual is not None:
        x, extras = extras.with_input(x)
    if not plan.dense:
        x = x.contiguous()
    activation, residual, mask, zero_masked = extras
    if mask is not None:
        mask = mask_in_memory(mask, x, plan.channel, plan.order)
    call = Call(plan.partition, eps, activation, True, zero_masked, pair=plan.pair)
    return normalize(x, call, weight, bias, residual, mask, None, running)
