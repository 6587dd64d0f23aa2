"""Layer and RMS normalization between the door and the path: statistics of the last axes, or of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenly import backends
from evenly.core.activation import Activation
from evenly.core.partition import Partition
from evenly.nn import check, exported
from evenly.nn.batch import Extras
from evenly.nn.layout import layout
from evenly.nn.normalize import Call, normalize, plain
from evenly.nn.plan import Plan, pair_for, remembered


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
    plan = remembered(_plan, x, weight, bias, None, shape, channel, norm, eps, extras.activation)
    if extras.residual is not None:
        x, extras = extras.with_input(x)
    if centered and extras.residual is None and extras.activation.name is None and _short(x, weight, bias, channel):
        return exported.row_norm(x, shape, weight, bias, eps, centered, None)
    if not plan.dense:
        x = x.contiguous()
    call = Call(plan.partition, eps, extras.activation, centered, pair=plan.pair)
    return normalize(x, call, _flat(weight), _flat(bias), extras.residual)


def _short(x: Tensor, weight: Tensor | None, bias: Tensor | None, channel: int | None) -> bool:
    """Whether torch's layer norm, which needs no function of Python's, is done sooner than a kernel is reached.

    In half precision torch adds up the weight's gradient in half precision, so there the kernels are asked.
    """
    dtype = x.dtype
    return (
        channel is None
        and 0 < x.nbytes < _TORCHS
        and dtype in (torch.float32, torch.float64)
        and (weight is None or weight.dtype is dtype)
        and (bias is None or bias.dtype is dtype)
        and not backends.forced()
        and plain(x, weight, bias)
    )


_TORCHS = 2 << 20  # bytes; from about here on the kernels' memory, which is used again, outweighs the call


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
    eps: float,
    activation: Activation,
) -> Plan:
    channel = _door(x, weight, bias, shape, channel, norm)
    if channel is None:
        partition, dense = Partition.of_layer(x.shape, len(shape)), x.is_contiguous()
        pair = pair_for(x, partition, dense, activation, eps, centered=norm == "layer_norm")
        return Plan(partition, x.ndim - 1, tuple(range(x.ndim)), dense, pair=pair)
    sizes, at, order, dense = layout(x, channel)
    return Plan(Partition.of_channels(sizes, at), channel, order, dense)


def _flat(vector: Tensor | None) -> Tensor | None:
    return vector if vector is None or vector.ndim == 1 else vector.reshape(-1)
