"""Layer and RMS normalization from their arguments to the path: statistics of the last axes, or of one."""

from __future__ import annotations

import torch
from torch import Tensor

from evenly import backends
from evenly.backends.records import Tensors
from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.call import Call
from evenly.nn.layout import Layout, layout
from evenly.nn.path import normalize
from evenly.nn.plan import Plan, Statistics, planned, remembered
from evenly.nn.settings import Settings
from evenly.nn.situation import hooked, leaving, plain

_TORCHS = 2 << 20  # bytes; from about here on the kernels' memory, which is used again, outweighs the call


def rows(x: Tensor, tensors: Tensors, settings: Settings) -> Tensor:
    """Layer or RMS norm of ``x``.

    Args:
        x: shape ``(*, *settings.shape)``, or with ``settings.channel`` any whose axis has that size.
        tensors: weight and bias of shape ``settings.shape``; residual.
        settings: epsilon, activation, shape.
    """
    if leaving():
        return _exported(x, tensors, settings)
    weight, bias, residual, _ = tensors
    if residual is not None:
        x, residual = check.with_residual(x, residual)
    plan = remembered(find, x, tensors, None, settings)
    if plan.short and residual is None and _of_one_type(x, weight, bias) and plain(x, weight, bias) and not hooked():
        return _by_torch(x, tensors, settings, None)
    if not plan.dense:
        x = x.contiguous()
    return normalize(x, Tensors(_flat(weight), _flat(bias), residual), Call(plan))


def find(x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> Plan:
    """How layer or RMS norm reads ``x``."""
    channel = _checked(x, tensors, settings)
    if channel is not None:
        lies = layout(x, channel)
        return planned(x, settings, Partition.of_channels(lies.shape, lies.channel), lies)
    lies = Layout(tuple(x.shape), x.ndim - 1, tuple(range(x.ndim)), x.is_contiguous(), x.ndim - 1)
    partition = Partition.of_layer(x.shape, len(settings.shape))
    return planned(x, settings, partition, lies, short=_is_short(x, settings))


def _is_short(x: Tensor, settings: Settings) -> bool:
    """Whether torch's layer norm, which needs no function of Python's, is done sooner than a kernel is reached.

    In half precision torch adds up the weight's gradient in half precision, so there the kernels are asked.
    """
    if torch.compiler.is_compiling() or settings.kind != "layer" or settings.activation.name is not None:
        return False
    return (
        0 < x.numel() * x.element_size() < _TORCHS
        and x.dtype in (torch.float32, torch.float64)
        and backends.chosen() == "auto"
    )


def _of_one_type(x: Tensor, *vectors: Tensor | None) -> bool:
    return all(t is None or t.dtype is x.dtype for t in vectors)


def _checked(x: Tensor, tensors: Tensors, settings: Settings) -> int | None:
    """Refuse what does not fit; the channel axis from the front, if it is one axis."""
    check.check_input(x)
    channel, name = settings.channel, "layer_norm" if settings.kind == "layer" else "rms_norm"
    if channel is None:
        check.check_rows(x, settings.shape, name)
    else:
        channel = channel % x.ndim
        check.check_one_axis(x, settings.shape, channel, name)
    check.check_row_affine(settings.shape, ("weight", tensors.weight), ("bias", tensors.bias))
    return channel


def _exported(x: Tensor, tensors: Tensors, settings: Settings) -> Tensor:
    """By torch's operators."""
    channel = _checked(x, tensors, settings)
    x, residual = check.with_residual(x, tensors.residual)
    y = _by_torch(x, tensors, settings, channel)
    return exported.finish(y, residual, settings.activation)


def _by_torch(x: Tensor, tensors: Tensors, settings: Settings, channel: int | None) -> Tensor:
    eps, centered = settings.eps_for(x.dtype), settings.kind == "layer"
    return exported.row_norm(x, settings.shape, tensors.weight, tensors.bias, eps, centered, channel)


def _flat(vector: Tensor | None) -> Tensor | None:
    return vector if vector is None or vector.ndim == 1 else vector.reshape(-1)
