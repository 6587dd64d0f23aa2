"""Batch normalization in `keras.ops`: two passes, true counts, fit for jit (JAX, TensorFlow)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from evenly.keras.statistics import renormalize, spread, statistics_dtype, update


def batch(layer: Any, inputs: Any, training: bool, mask: Any) -> Any:
    """``activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)``; in training, updates the moving statistics.

    Args:
        layer: a built `evenly.keras.BatchNormalization`.
        inputs: any shape; ``layer.axis`` holds the channels.
        training: whether to use the batch's own statistics.
        mask: which elements count, or how much (see `spread`); None: all.
    """
    x = ops.cast(inputs, statistics_dtype(inputs.dtype))
    axis = layer.axis % len(x.shape)
    weights = None if mask is None else spread(mask, x, axis)
    if weights is not None and layer.zero_masked:
        x = ops.where(weights > 0, x, 0)  # whatever lies there must not reach a gradient
    gamma, beta = layer.gamma, layer.beta
    if training:
        count, mean, var = _moments(layer, x, weights, axis)
        if layer.renorm:
            gamma, beta = renormalize(layer, mean, var)
        update(layer, count, mean, var)
    else:
        mean, var = ops.convert_to_tensor(layer.moving_mean), ops.convert_to_tensor(layer.moving_variance)
    y = _normalize(x, mean, ops.rsqrt(var + layer.epsilon), gamma, beta, axis)
    y = layer.activation(y)
    if weights is not None and layer.zero_masked:
        y = ops.where(weights > 0, y, 0)
    return y


def _moments(layer: Any, x: Any, weights: Any, axis: int) -> tuple[Any, Any, Any]:
    """Count, mean and biased variance of each channel; zero elements give mean 0 and variance 0."""
    axes = [a for a in range(len(x.shape)) if a != axis]
    if weights is None:
        count = ops.cast(ops.size(x), x.dtype) / max(x.shape[axis], 1)
        if layer.synchronized and keras.backend.backend() == "tensorflow":
            return count, *ops.moments(x, axes, synchronized=True)
        divisor = ops.maximum(count, 1)
        mean = ops.sum(x, axes) / divisor
        deviation = x - _along(mean, x, axis)
        return count, mean, ops.sum(deviation * deviation, axes) / divisor
    if layer.synchronized and keras.backend.backend() == "tensorflow":
        raise ValueError(
            "synchronized=True with a mask is not available on the TensorFlow backend: its replicas would need to "
            "exchange counts. Use the torch or JAX backend, or synchronized=False."
        )
    counts = weights > 0
    weights = ops.broadcast_to(ops.where(counts, weights, 0), ops.shape(x))
    x = ops.where(counts, x, 0)
    count = ops.sum(weights, axes)
    divisor = ops.where(count > 0, count, 1)
    mean = ops.sum(weights * x, axes) / divisor
    deviation = x - _along(mean, x, axis)
    return count, mean, ops.sum(weights * deviation * deviation, axes) / divisor


def _normalize(x: Any, mean: Any, rstd: Any, gamma: Any, beta: Any, axis: int) -> Any:
    # (x - mean) first: x * scale + offset loses what x and mean have in common.
    scale = rstd if gamma is None else rstd * ops.cast(gamma, rstd.dtype)
    y = (x - _along(ops.cast(mean, x.dtype), x, axis)) * _along(ops.cast(scale, x.dtype), x, axis)
    return y if beta is None else y + _along(ops.cast(beta, x.dtype), x, axis)


def _along(vector: Any, x: Any, axis: int) -> Any:
    """A vector of one number per channel, shaped to broadcast to ``x``."""
    return ops.reshape(vector, [-1 if a == axis else 1 for a in range(len(x.shape))])


def cast(y: Any, dtype: str) -> Any:
    """``y`` in Keras's type of that name."""
    return ops.cast(y, dtype)
