"""Keras's layers by evenly's kernels, on Keras's torch backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from keras import ops
from torch import Tensor

from evenly import backends
from evenly.backends.running import Running
from evenly.core.partition import Partition
from evenly.core.running import ema
from evenly.keras.activation import split
from evenly.keras.statistics import renormalize, spread, update
from evenly.nn import batch as nn_batch
from evenly.nn import functional
from evenly.nn.layout import layout
from evenly.nn.mask import mask_in_memory
from evenly.nn.recompute import recomputing
from evenly.nn.sync import Processes, processes


def batch(layer: Any, inputs: Tensor, training: bool, mask: Tensor | None) -> Tensor:
    """``activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)``; in training, updates the moving statistics.

    Args:
        layer: a built `evenly.keras.BatchNormalization`.
        inputs: any shape; ``layer.axis`` holds the channels.
        training: whether to use the batch's own statistics.
        mask: which elements count, or how much (see `evenly.functional.batch_norm`); None: all.
    """
    x = _floating(inputs)
    if mask is not None:
        mask = ops.convert_to_tensor(mask)
        mask = mask if mask.is_floating_point() else mask != 0
    fused, after = split(layer.activation)
    extras = nn_batch.Extras(fused, None, mask, layer.zero_masked)
    if not training:
        given = (layer.moving_mean.value, layer.moving_variance.value)
        y = _call(layer, x, _value(layer.gamma), _value(layer.beta), extras, given=given)
    elif layer.renorm:
        y = _renorm(layer, x, extras)
    else:
        y = _measured(layer, x, extras)
    if after is not None:
        y = after(y)
        if mask is not None and layer.zero_masked:
            y = ops.where(spread(mask, x, layer.axis % x.ndim) > 0, y, 0)
    return y


def group(layer: Any, inputs: Tensor) -> Tensor:
    """``activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)`` per sample and group of channels.

    Args:
        layer: a built `evenly.keras.GroupNormalization`.
        inputs: shape ``(N, *)``; ``layer.axis`` holds the channels.
    """
    x = _floating(inputs)
    fused, after = split(layer.activation)
    y = functional.group_norm(
        x, layer.groups, _value(layer.gamma), _value(layer.beta), layer.epsilon,
        activation=fused.name, activation_args=(fused.arg,) if fused.kind.parameters else (), channel=layer.axis,
    )  # fmt: skip
    return y if after is None else after(y)


def _measured(layer: Any, x: Tensor, extras: nn_batch.Extras) -> Tensor:
    # Copies, assigned afterwards: in a stateless or symbolic scope Keras must see the update, not suffer it.
    mean, var = (v.value.detach().clone() for v in (layer.moving_mean, layer.moving_variance))
    running = None if recomputing() else Running(mean, var, ema(1.0 - layer.momentum), unbiased=False)
    y = _call(layer, x, _value(layer.gamma), _value(layer.beta), extras, running=running)
    if running is not None:
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(var)
    return y


def _renorm(layer: Any, x: Tensor, extras: nn_batch.Extras) -> Tensor:
    # r and d depend on the moments and scale the output, so that the moments are taken before the kernels run.
    count, mean, var = _moments(layer, x, extras.mask)
    scale, shift = renormalize(layer, mean, var)
    if not recomputing():
        update(layer, count, mean, var)
    return _call(layer, x, scale, shift, extras)


def _moments(layer: Any, x: Tensor, mask: Tensor | None) -> tuple[Any, Tensor, Tensor]:
    with torch.no_grad():
        channel = layer.axis % x.ndim
        dense, shape, at, order = layout(x.detach(), channel)
        weights = None if mask is None else mask_in_memory(mask, x, channel, order)
        moments = backends.choose(x).moments(dense, Partition.of_batch(shape, at), weights)
        group = _group(layer, x)
        moments = moments if group is None else group.merge(moments)
        count = moments.count[0] if isinstance(moments.count, Tensor) else moments.mean.new_tensor(moments.count)
        return count, moments.mean[0], moments.var[0]


def _call(
    layer: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    extras: nn_batch.Extras,
    given: tuple[Tensor, Tensor] | None = None,
    running: Running | None = None,
) -> Tensor:
    return nn_batch.batch(
        x, weight, bias, layer.epsilon, extras, channel=layer.axis,
        given=given, running=running, group=None if given else _group(layer, x),
        small=nn_batch.Small(single="pass"),  # one value per channel gives beta, as in Keras
    )  # fmt: skip


def _group(layer: Any, x: Tensor) -> Processes | None:
    """The processes to share statistics with; none while Keras only asks for shapes."""
    group = processes(None) if layer.synchronized and not x.is_meta else None
    return group if group is None else replace(group, refuses_single=False)


def _value(variable: Any) -> Tensor | None:
    return None if variable is None else variable.value


def _floating(inputs: Any) -> Tensor:
    """Keras normalizes arrays and integers too."""
    x: Tensor = ops.convert_to_tensor(inputs)
    return x if x.is_floating_point() or x.is_complex() else x.float()
