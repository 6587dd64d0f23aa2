"""torch's own operators, for what must run without evenly: torch.export, ONNX, traces.

The same formula and, where torch's operator can express it, the same statistics; a batch that
is not finite is written, as torch's operator does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evenly.backends.reference import apply_activation
from evenly.backends.running import Running
from evenly.core.activation import Activation


def leaving() -> bool:
    """Whether this call is being written down for a program that does not know evenly."""
    return torch._C._get_tracing_state() is not None or (
        torch.compiler.is_compiling() and torch.compiler.is_exporting()
    )


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    given: tuple[Tensor, Tensor] | None,
    running: Running | None,
    channel: int,
) -> Tensor | None:
    """Batch norm by torch's operator, or None where it has no way to say it."""
    if weight is not None and x.dtype != torch.float64:
        # torch refuses half parameters beside float32 statistics.
        weight, bias = weight.float(), None if bias is None else bias.float()
    if x.dtype != torch.float64 and weight is None and bias is not None:
        weight, bias = torch.ones_like(bias, dtype=torch.float32), bias.float()
    x = _moved(x, channel, 1)
    if given is not None:
        return _moved(F.batch_norm(x, *given, weight, bias, False, 0.0, eps), 1, channel)
    if running is None:
        return _moved(F.batch_norm(x, None, None, weight, bias, True, 0.0, eps), 1, channel)
    momentum = running.factor()
    if isinstance(momentum, Tensor) or running.pending is not None or not running.unbiased:
        return None
    if running.batches is not None:
        running.batches.add_(1)
    return _moved(F.batch_norm(x, running.mean, running.var, weight, bias, True, momentum, eps), 1, channel)


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
