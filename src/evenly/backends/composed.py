"""The fused pairs ``forward`` and ``backward``, composed of any backend's four steps.

Used where a backend has no fused pair, and where processes must talk between the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from evenly.backends.reference import Sums
from evenly.backends.running import Running, update
from evenly.core.activation import Activation
from evenly.core.moments import Moments
from evenly.core.partition import Partition


def forward(
    steps: ModuleType,
    x: Tensor,
    partition: Partition,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    *,
    mask: Tensor | None = None,
    zeroing: Tensor | None = None,
    centered: bool = True,
    keep: bool = False,
    running: Running | None = None,
    spread: bool = True,
    merge: Callable[[Moments], Moments] | None = None,
) -> tuple[Tensor, Moments, Tensor, Tensor | None]:
    """Steps 1 and 2: ``(y, moments, rstd, saved)``; updates the running statistics between them.

    Args:
        steps: the backend whose steps are composed.
        x, partition, weight, bias, residual, activation, mask, zeroing, keep: as in
            `evenly.backends.reference`.
        eps: added to the variance.
        centered: False for RMS norm.
        running: the buffers to update, if any.
        spread: whether the moments' m2 is asked for; it may be None else.
        merge: from this process's moments to those of all that share statistics.
    """
    moments = steps.moments(x, partition, mask, centered=centered)
    if merge is not None:
        moments = merge(moments)
    if running is not None:
        update(running, _per_channel(moments, partition))
    rstd = torch.rsqrt(moments.var + eps)
    y, saved = steps.normalize(
        x, partition, moments.mean, rstd, weight, bias, residual, activation, zeroing=zeroing, keep=keep
    )
    return y, moments, rstd, saved


def backward(
    steps: ModuleType,
    dy: Tensor,
    x: Tensor,
    partition: Partition,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor | None,
    activation: Activation,
    count: int | Tensor,
    *,
    mask: Tensor | None = None,
    zeroing: Tensor | None = None,
    centered: bool = True,
    measured: bool = True,
    dresidual: bool = False,
    dx: bool = True,
    affine: bool = True,
    add: Callable[[Sums], Sums] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Steps 3 and 4: ``(dx, dweight, dbias, dresidual)``, None for what was not asked for.

    Args:
        steps: the backend whose steps are composed.
        dy, x, partition, mean, rstd, weight, bias, saved, activation, count, mask, zeroing,
            centered, dresidual: as in `evenly.backends.reference`.
        measured: whether mean and rstd are ``x``'s own, so that gradients flow through them.
        dx: whether the input's gradient is asked for.
        affine: whether those of weight and bias are.
        add: from this process's sums to those of all that share statistics.
    """
    sums = local = None
    # Processes add their sums even where this one has no use for them: another may.
    if affine or (measured and (dx or add is not None)):
        sums = local = steps.backward_sums(
            dy, x, partition, mean, rstd, weight, bias, saved, activation, zeroing=zeroing
        )
        if add is not None and measured:
            sums = add(local)
    dx_, dres = None, None
    if dx or dresidual:
        dx_, dres = steps.backward_input(
            dy, x, partition, mean, rstd, weight, bias, saved, activation, sums if measured else None, count,
            mask=mask, zeroing=zeroing, centered=centered, dresidual=dresidual,
        )  # fmt: skip
    return (dx_ if dx else None, *((local.dweight, local.dbias) if affine and local else (None, None)), dres)


def _per_channel(moments: Moments, partition: Partition) -> Moments:
    """Moments as ``(sets, channels)``; statistics of groups wider than a channel have no buffers."""
    assert partition.group == partition.channels, "running statistics belong to channels"
    return moments
