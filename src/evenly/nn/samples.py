"""Instance and group normalization between the door and the path: statistics of each sample."""

from __future__ import annotations

from math import prod

from torch import Tensor

from evenly.backends.running import Running
from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.batch import Extras
from evenly.nn.layout import layout
from evenly.nn.normalize import Call, normalize


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
    check.check_input(x)
    channel = channel % x.ndim
    check.check_spatial(x, channel)
    check.check_batch_eps(eps, training=False)
    named = ("running_mean", running.mean if running else None)
    check.check_channels(x, channel, ("weight", weight), ("bias", bias), named)
    x, extras = extras.with_input(x)
    if exported.leaving() and extras.mask is None:
        y = exported.instance_norm(x, weight, bias, eps, running, channel)
        return exported.finish(y, extras.residual, extras.activation)
    x, shape, at, order = layout(x, channel, samples_first=True)
    call = Call(Partition.of_instance(shape, at), eps, extras.activation, zero_masked=extras.zero_masked)
    return normalize(x, call, weight, bias, *extras.tensors(x, channel, order), running=running)


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
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    check.check_input(x)
    channel = channel % x.ndim
    check.check_channels(x, channel, ("weight", weight), ("bias", bias))
    if x.numel() == groups and prod(x.shape) == x.shape[0] * groups:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    x, extras = extras.with_input(x)
    if exported.leaving() and extras.mask is None:
        y = exported.group_norm(x, groups, weight, bias, eps, channel)
        return exported.finish(y, extras.residual, extras.activation)
    x, shape, at, order = layout(x, channel, samples_first=True)
    call = Call(Partition.of_group(shape, at, groups), eps, extras.activation, zero_masked=extras.zero_masked)
    return normalize(x, call, weight, bias, *extras.tensors(x, channel, order))
