"""Keras's layers by evenly's kernels, on Keras's torch backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from keras import ops
from torch import Tensor

from evenly.backends.records import Given, Tensors
from evenly.backends.running import Running
from evenly.core.activation import Activation
from evenly.core.moments import Moments
from evenly.core.running import ema
from evenly.keras import shortcut
from evenly.keras.activation import split
from evenly.keras.statistics import as_keras, renormalize, spread, update
from evenly.nn import functional
from evenly.nn.batch import batch as normalize
from evenly.nn.settings import Settings, known
from evenly.nn.situation import recomputing
from evenly.nn.sync import Processes, processes

try:  # Keras has no public way to ask; without this one every update goes the long way
    from keras.src.backend.common.stateless_scope import in_stateless_scope
except ImportError:

    def in_stateless_scope() -> bool:
        """Whether Keras collects updates of variables, for all we know."""
        return True


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
        mask = as_keras(ops.convert_to_tensor(mask), x, layer.axis % x.ndim)
        mask = mask if mask.is_floating_point() else mask != 0
    fused, after = split(layer.activation)
    settings = _settings(layer, fused)
    y = _measured(layer, x, mask, settings) if training else _given(layer, x, mask, settings)
    if after is not None:
        y = after(y)
        if mask is not None and layer.zero_masked:
            y = ops.where(spread(mask, x, layer.axis % x.ndim) > 0, y, 0)
    return y


def cast(y: Tensor, dtype: str) -> Tensor:
    """``y`` in Keras's type of that name."""
    return y if shortcut.DTYPES.get(dtype) is y.dtype else ops.cast(y, dtype)


def group(layer: Any, inputs: Tensor) -> Tensor:
    """``activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)`` per sample and group of channels.

    Args:
        layer: a built `evenly.keras.GroupNormalization`.
        inputs: shape ``(N, *)``; ``layer.axis`` holds the channels.
    """
    fused, after = split(layer.activation)
    y = functional.group_norm(
        _floating(inputs), layer.groups, _value(layer.gamma), _value(layer.beta), layer.epsilon,
        activation=fused.name, activation_args=(fused.arg,) if fused.kind.parameters else (), channel=layer.axis,
    )  # fmt: skip
    return y if after is None else after(y)


def _settings(layer: Any, fused: Activation) -> Settings:
    """What the layer's arguments come to; one value per channel passes, to become beta, as in Keras."""
    asked = layer.epsilon, fused, layer.axis, layer.zero_masked
    return known(
        ("keras", asked),
        lambda: Settings("batch", layer.epsilon, fused, layer.axis, zero_masked=layer.zero_masked, single="pass"),
    )


def _given(layer: Any, x: Tensor, mask: Tensor | None, settings: Settings) -> Tensor:
    weight, bias, mean, var = _values(layer, x)
    return normalize(x, Tensors(weight, bias, None, mask), Given(mean, var), settings)


def _measured(layer: Any, x: Tensor, mask: Tensor | None, settings: Settings) -> Tensor:
    weight, bias, mean, var = _values(layer, x)
    enters = not (layer.renorm or recomputing())
    # In a stateless or symbolic scope Keras must see the update, not suffer it; else the kernel writes in place.
    aside = enters and in_stateless_scope()
    if aside:
        mean, var = mean.detach().clone(), var.detach().clone()
    running = Running(mean, var, ema(1.0 - layer.momentum), unbiased=False, enters=enters)
    y = normalize(
        x, Tensors(weight, bias, None, mask), running, settings, _group(layer, x),
        _Corrections(layer) if layer.renorm else None,
    )  # fmt: skip
    if aside:
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(var)
    return y


class _Corrections(NamedTuple):
    """Batch renormalization with Keras's statistics and bounds, in the place of `evenly.nn.renorm.Renorm`."""

    layer: Any

    def affine(self, moments: Moments, *_: object) -> tuple[Tensor, Tensor]:
        """The weight and bias that apply the corrections; then the moments enter the layer's statistics."""
        mean, var = moments.mean[0], moments.var[0]
        count = moments.count[0] if isinstance(moments.count, Tensor) else mean.new_tensor(moments.count)
        weight, bias = renormalize(self.layer, mean, var)
        if not recomputing():
            update(self.layer, count, mean, var)
        return weight, bias


def _group(layer: Any, x: Tensor) -> Processes | None:
    """The processes to share statistics with; none while Keras only asks for shapes."""
    group = processes(None) if layer.synchronized and not x.is_meta else None
    return group if group is None else replace(group, refuses_single=False)


def _values(layer: Any, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gamma, beta, moving mean and moving variance."""
    gamma, beta, mean, var = layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance
    if shortcut.bare(x) and mean._value is not None and var._value is not None:
        return gamma if gamma is None else gamma._value, beta if beta is None else beta._value, mean._value, var._value
    return _value(gamma), _value(beta), mean.value, var.value


def _value(variable: Any) -> Tensor | None:
    return None if variable is None else variable.value


def _floating(inputs: Any) -> Tensor:
    """Keras normalizes arrays and integers too."""
    x: Tensor = inputs if isinstance(inputs, Tensor) else ops.convert_to_tensor(inputs)
    return x if x.is_floating_point() or x.is_complex() else x.float()
