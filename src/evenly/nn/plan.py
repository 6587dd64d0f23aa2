"""What a norm finds in shapes, strides and types alone: found once for tensors that are alike.

A layer asks the same questions of every batch: whether the input can be normalised, whether the
weight fits it, how it lies in memory, which of its elements share statistics. The answers are
remembered here, for every norm; what raises is not, so that wrong input is refused each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly import backends
from evenly.core.activation import Activation
from evenly.core.partition import Partition


class Plan(NamedTuple):
    """How a norm reads an input.

    Args:
        partition: which elements share statistics, over the memory order.
        channel: the channel axis, counted from the front.
        order: the input's axes in memory order.
        dense: whether the input lies so; if not, it must be copied first.
        uneven: ghosts that do not divide the batch, which must be cut first; else 0.
        pair: the kernels' pair for calls that are alike (`evenly.backends.cpu.Pair`), or None.
    """

    partition: Partition
    channel: int
    order: tuple[int, ...]
    dense: bool
    uneven: int = 0
    pair: Any = None


def remembered(
    find: Callable[..., Plan],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    *settings: Any,
) -> Plan:
    """``find(x, weight, bias, mean, *settings)``, which may look at shapes, strides and types alone.

    Asked anew wherever a tensor's shape may be more than numbers: subclasses, traces, graphs.
    """
    if type(x) not in _PLAIN or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return find(x, weight, bias, mean, *settings)
    try:
        key = (
            find, x.shape, x.stride(), x.dtype, settings, None if weight is None else weight.shape,
            None if bias is None else bias.shape, None if mean is None else mean.shape, x.is_cpu,
        )  # fmt: skip
        plan = _PLANS.get(key)
    except (RuntimeError, TypeError):  # no strides (sparse), no shape (nested), a setting without a hash
        return find(x, weight, bias, mean, *settings)
    if plan is None:
        plan = find(x, weight, bias, mean, *settings)
        if len(_PLANS) >= _MOST:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan


def pair_for(
    x: Tensor, partition: Partition, dense: bool, activation: Activation, eps: float, *, centered: bool = True
) -> Any:
    """The kernels' pair for inputs like ``x``, or None where there is none."""
    if not dense or torch.compiler.is_compiling() or type(x) not in _PLAIN or not x.is_cpu:
        return None
    cpu = backends.import_cpu()
    return None if cpu is None else cpu.pair(x, partition, activation, eps, centered=centered)


_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_MOST = 4096  # of ever new shapes (sequences of every length) no more than this are kept
_PLANS: dict[Any, Plan] = {}
