"""Instance and group normalization from their arguments to the path: statistics of each sample."""

from __future__ import annotations

from math import prod

from torch import Tensor

from evenly.backends.records import Tensors
from evenly.backends.running import Running
from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.call import Call
from evenly.nn.layout import layout
from evenly.nn.mask import mask_in_memory
from evenly.nn.path import normalize
from evenly.nn.plan import Plan, Statistics, planned, remembered
from evenly.nn.settings import Settings
from evenly.nn.situation import leaving


def samples(x: Tensor, tensors: Tensors, running: Running | None, settings: Settings) -> Tensor:
    """Instance or group norm of ``x`` by its own statistics.

    Args:
        x: shape ``(N, C, *)`` (channels on axis ``settings.channel``).
        tensors: weight and bias of shape ``(C,)``; residual; mask as `evenly.nn.mask.mask_in_memory` takes it.
        running: buffers that the measured statistics enter (instance norm).
        settings: epsilon, activation, groups.
    """
    if leaving() and tensors.mask is None:
        return _exported(x, tensors, running, settings)
    weight, bias, residual, mask = tensors
    if residual is not None:
        x, residual = check.with_residual(x, residual)
    plan = remembered(find, x, tensors, running, settings)
    if not plan.dense:
        x = x.contiguous()
    if mask is not None:
        mask = mask_in_memory(mask, x, plan.channel, plan.kernel.order)
    return normalize(x, Tensors(weight, bias, residual, mask), Call(plan, running))


def find(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> Plan:
    """How instance or group norm reads ``x``."""
    channel = _checked(x, tensors, statistics, settings)
    lies = layout(x, channel, samples_first=True)
    if settings.kind == "instance":
        return planned(x, settings, Partition.of_instance(lies.shape, lies.channel), lies)
    return planned(x, settings, Partition.of_group(lies.shape, lies.channel, settings.parts), lies)


def _checked(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> int:
    """Refuse what does not fit; the channel axis, from the front."""
    instance = settings.kind == "instance"
    if not instance and x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    check.check_input(x)
    assert settings.channel is not None and settings.eps is not None
    channel = settings.channel % x.ndim
    if instance:
        check.check_spatial(x, channel)
        check.check_batch_eps(settings.eps, training=False)
    mean, var = (None, None) if statistics is None else (statistics.mean, statistics.var)
    check.check_channels(
        x, channel, ("weight", tensors.weight), ("bias", tensors.bias), ("running_mean", mean), ("running_var", var)
    )
    if not instance and x.numel() == settings.parts and prod(x.shape) == x.shape[0] * settings.parts:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    return channel


def _exported(x: Tensor, tensors: Tensors, running: Running | None, settings: Settings) -> Tensor:
    """By torch's operators."""
    channel = _checked(x, tensors, running, settings)
    x, residual = check.with_residual(x, tensors.residual)
    weight, bias, eps = tensors.weight, tensors.bias, settings.eps
    assert eps is not None
    if settings.kind == "instance":
        y = exported.instance_norm(x, weight, bias, eps, running, channel)
    else:
        y = exported.group_norm(x, settings.parts, weight, bias, eps, channel)
    return exported.finish(y, residual, settings.activation)
