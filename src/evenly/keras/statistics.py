"""What a batch's statistics do to a layer's state, and to its output under renormalization.

Written in `keras.ops`, so that it holds on every backend and under jit. Statistics are vectors of
one number per channel; ``count`` is a number, or a vector where a mask differs between channels.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def statistics_dtype(dtype: Any) -> str:
    """The type in which statistics are kept and computed: float64 for float64, else float32.

    `keras.backend.result_type` will not do: of float64 and float32 it makes float32.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def update(layer: Any, count: Any, mean: Any, var: Any) -> None:
    """Enter one batch into the moving statistics: ``moving <- momentum * moving + (1 - momentum) * batch``.

    A batch without elements that count, or with a statistic that is not finite, changes nothing.

    Args:
        layer: a built `evenly.keras.BatchNormalization`.
        count: how many elements each statistic is of.
        mean: shape ``(C,)``.
        var: biased, shape ``(C,)``.
    """
    mean, var = ops.stop_gradient(mean), ops.stop_gradient(var)
    where = ops.logical_and(ops.all(ops.logical_and(ops.isfinite(mean), ops.isfinite(var))), count > 0)
    if not layer.renorm:
        _blend(layer.moving_mean, mean, layer.momentum, where)
        _blend(layer.moving_variance, var, layer.momentum, where)
        return
    stddev = ops.sqrt(var + layer.epsilon)
    _blend(layer.renorm_mean, mean, layer.renorm_momentum, where)
    _blend(layer.renorm_stddev, stddev, layer.renorm_momentum, where)
    _blend(layer.moving_mean, mean, layer.momentum, where)
    moving_stddev = _blend(layer.moving_stddev, stddev, layer.momentum, where)
    variance = ops.relu(moving_stddev * moving_stddev - layer.epsilon)
    _assign(layer.moving_variance, variance, where)


def _blend(variable: Any, value: Any, momentum: float, where: Any) -> Any:
    return _assign(variable, momentum * variable + (1.0 - momentum) * value, where)


def _assign(variable: Any, value: Any, where: Any) -> Any:
    value = ops.where(where, ops.cast(value, variable.dtype), ops.convert_to_tensor(variable))
    variable.assign(value)
    return value


def renormalize(layer: Any, mean: Any, var: Any) -> tuple[Any, Any]:
    """Scale and shift of a batch under renormalization: ``(xhat * r + d) * gamma + beta``.

    ``r = std / renorm_std`` within [rmin, rmax] and ``d = (mean - renorm_mean) / renorm_std``
    within [-dmax, dmax] are constants to the gradient.

    Args:
        layer: a built `evenly.keras.BatchNormalization` with ``renorm=True``.
        mean: of the batch, shape ``(C,)``.
        var: biased, shape ``(C,)``.

    Returns:
        ``r * gamma`` and ``d * gamma + beta``, each of shape ``(C,)``.

    Source:
        Ioffe, 2017, https://arxiv.org/abs/1702.03275
    """
    given = {name: bound for name, bound in (layer.renorm_clipping or {}).items() if bound is not None}
    clipping = {"rmin": 0.0, "rmax": float("inf"), "dmax": float("inf")} | given
    # The least standard deviation a layer can have measured is sqrt(epsilon).
    stddev = ops.maximum(layer.renorm_stddev, layer.epsilon**0.5)
    r = ops.clip(ops.sqrt(var + layer.epsilon) / stddev, clipping["rmin"], clipping["rmax"])
    d = ops.clip((mean - layer.renorm_mean) / stddev, -clipping["dmax"], clipping["dmax"])
    r, d = ops.stop_gradient(r), ops.stop_gradient(d)
    gamma, beta = (v if v is None else ops.cast(v, r.dtype) for v in (layer.gamma, layer.beta))
    scale, shift = (r, d) if gamma is None else (r * gamma, d * gamma)
    return scale, shift if beta is None else shift + beta


def as_keras(mask: Any, x: Any, axis: int) -> Any:
    """A mask of the shape that Keras takes, ``x.shape[:-1]``, made to broadcast as in Keras, on any axis.

    Where the channels are last, or the mask has another shape, it is returned as it is.
    """
    if axis != len(x.shape) - 1 and len(mask.shape) == len(x.shape) - 1 and tuple(mask.shape) == tuple(x.shape[:-1]):
        return ops.expand_dims(mask, -1)
    return mask


def spread(mask: Any, x: Any, axis: int) -> Any:
    """The mask as weights that broadcast to ``x``: 1 or 0 from bool and integers, as they are from floats.

    Args:
        mask: ``x``'s shape without its last axis (as in Keras) or without the channel axis, ``(N,)``, or
            what broadcasts to ``x``.
        x: the input.
        axis: its channel axis.

    Raises:
        ValueError: the mask has another number of axes.
    """
    rank = len(x.shape)
    mask = as_keras(mask, x, axis)
    if len(mask.shape) == 1 and rank > 2:
        mask = ops.reshape(mask, (-1, *(1 for _ in range(rank - 1))))
    if len(mask.shape) == rank - 1:
        mask = ops.expand_dims(mask, axis)
    if len(mask.shape) != rank:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not fit input of shape {tuple(x.shape)} with channels on axis "
            f"{axis}; give the input's shape without that axis, (N,) for samples, or a shape that broadcasts to it."
        )
    weights = mask if "float" in str(mask.dtype) else ops.cast(mask, "bool")
    return ops.cast(weights, x.dtype)
