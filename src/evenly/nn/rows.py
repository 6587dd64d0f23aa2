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
    check.check_input(x)
    if channel is None:
        check.check_rows(x, shape, norm)
    else:
        channel = channel % x.ndim
        check.check_one_axis(x, shape, channel, norm)
    check.check_row_affine(shape, ("weight", weight), ("bias", bias))
    x, extras = extras.with_input(x)
    centered = norm == "layer_norm"
    if exported.leaving():
        y = exported.row_norm(x, shape, weight, bias, eps, centered, channel)
        return exported.finish(y, extras.residual, extras.activation)
    if channel is None:
        x = x.contiguous()
        partition = Partition.of_layer(x.shape, len(shape))
    else:
        x, sizes, at, _ = layout(x, channel)
        partition = Partition.of_channels(sizes, at)
    call = Call(partition, eps, extras.activation, centered=centered)
    return normalize(x, call, _flat(weight), _flat(bias), extras.residual)


def _flat(vector: Tensor | None) -> Tensor | None:
    return vector if vector is None or vector.ndim == 1 else vector.reshape(-1)
