"""torch's own operators, for what must run without evenly: torch.export, ONNX, traces.

The same formula and, where torch's operator can express it, the same statistics; a batch that
is not finite is written, as torch's operator does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evenly.backends.activations import apply_activation
from evenly.backends.records import Given
from evenly.backends.running import Running
from evenly.core.activation import Activation


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics: Running | Given | None,
    channel: int,
) -> Tensor | None:
    """Batch norm by torch's operator, or None where it has no way to say it."""
    weight, bias = _beside_float32(x, weight), _beside_float32(x, bias)
    if x.dtype != torch.float64 and weight is None and bias is not None:
        weight = torch.ones_like(bias)
    x = _moved(x, channel, 1)
    if isinstance(statistics, Given):
        return _moved(F.batch_norm(x, *statistics, weight, bias, False, 0.1, eps), 1, channel)
    if statistics is None:
        return _moved(F.batch_norm(x, None, None, weight, bias, True, 0.1, eps), 1, channel)
    momentum = statistics.factor()
    if isinstance(momentum, Tensor) or statistics.pending is not None or not statistics.unbiased:
        return None
    if statistics.batches is not None:
        statistics.batches.add_(1)
    return _moved(F.batch_norm(x, statistics.mean, statistics.var, weight, bias, True, momentum, eps), 1, channel)


def _beside_float32(x: Tensor, vector: Tensor | None) -> Tensor | None:
    """A parameter as torch takes it beside float32 statistics; a float32 one leaves no node in the graph."""
    if vector is None or x.dtype == torch.float64 or vector.dtype == torch.float32:
        return vector
    return vector.float()


def instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, running: Running | None, channel: int
) -> Tensor:
    """Instance norm by torch's operator."""
    mean, var = (None, None) if running is None else (running.mean, running.var)
    momentum = 0.0 if running is None else running.factor()
    assert isinstance(momentum, float)
    y = F.instance_norm(_moved(x, channel, 1), mean, var, weight, bias, True, momentum, eps)
    return _moved(y, 1, channel)


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, channel: int) -> Tensor:
    """Group norm by torch's operator."""
    return _moved(F.group_norm(_moved(x, channel, 1), groups, weight, bias, eps), 1, channel)


def row_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centered: bool,
    channel: int | None,
) -> Tensor:
    """Layer or RMS norm by torch's operator."""
    if channel is not None:
        y = row_norm(_moved(x, channel, -1), shape, weight, bias, eps, centered, None)
        return _moved(y, -1, channel)
    if centered:
        return F.layer_norm(x, list(shape), weight, bias, eps)
    y = F.rms_norm(x, list(shape), weight, eps)
    return y if bias is None else y + bias


def _moved(x: Tensor, source: int, target: int) -> Tensor:
    return x if source == target else x.movedim(source, target)


def finish(y: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    """Residual and activation, one after the other."""
    return apply_activation(y if residual is None else y + residual, activation)
