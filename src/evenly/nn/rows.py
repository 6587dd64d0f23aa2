"""Layer and RMS normalization between the door and the path: statistics of the last axes, or of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.batch import Extras
from evenly.nn.layout import layout
from evenly.nn.normalize import Call, normalize
from evenly.nn.plan import Plan, remembered


def layer(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    channel: int | None = None,
) -> Tensor:
    """Layer norm of ``x`` (arguments as in `evenly.functional.layer_norm`)."""
    return _rows(x, shape, weight, bias, eps, extras, channel, "layer_norm")


def rms(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    extras: Extras,
    channel: int | None = None,
) -> Tensor:
    """RMS norm of ``x`` (arguments as in `evenly.functional.rms_norm`)."""
    if eps is None:  # of the type computed in, which for half precision is float32
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    return _rows(x, shape, weight, bias, eps, extras, channel, "rms_norm")


def _rows(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    channel: int | None,
    norm: str,
) -> Tensor:
    centered = norm == "layer_norm"
    if exported.leaving():
        channel = _door(x, weight, bias, shape, channel, norm)
        x, extras = extras.with_input(x)
        y = exported.row_norm(x, shape, weight, bias, eps, centered, channel)
        return exported.finish(y, extras.residual, extras.activation)
    plan = remembered(_plan, x, weight, bias, None, shape, channel, norm)
    if extras.residual is not None:
        x, extras = extras.with_input(x)
    if not plan.dense:
        x = x.contiguous()
    call = Call(plan.partition, eps, extras.activation, centered)
    return normalize(x, call, _flat(weight), _flat(bias), extras.residual)


def _door(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], channel: int | None, norm: str
) -> int | None:
    """Refuse what does not fit; the channel axis from the front, if it is one axis."""
    check.check_input(x)
    if channel is None:
        check.check_rows(x, shape, norm)
    else:
        channel = channel % x.ndim
        check.check_one_axis(x, shape, channel, norm)
    check.check_row_affine(shape, ("weight", weight), ("bias", bias))
    return channel


def _plan(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: None,
    shape: Sequence[int],
    channel: int | None,
    norm: str,
) -> Plan:
    channel = _door(x, weight, bias, shape, channel, norm)
    if channel is None:
        partition = Partition.of_layer(x.shape, len(shape))
        return Plan(partition, x.ndim - 1, tuple(range(x.ndim)), x.is_contiguous())
    sizes, at, order, dense = layout(x, channel)
    return Plan(Partition.of_channels(sizes, at), channel, order, dense)


def _flat(vector: Tensor | None) -> Tensor | None:
    return vector if vector is None or vector.ndim == 1 else vector.reshape(-1)
