"""What a norm finds in shapes, strides and types alone: found once for tensors of one kind.

A layer asks the same questions of every batch: whether the input can be normalised, whether the
weight fits it, how it lies in memory, which of its elements share statistics, which kernel does it.
The answers are remembered here, for every norm; what raises is not, so that wrong input is refused
each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly import backends
from evenly.backends import reference
from evenly.backends.kernel import Kernel
from evenly.backends.records import Given, Tensors
from evenly.backends.running import Running
from evenly.core.activation import IDENTITY
from evenly.core.norm import Norm
from evenly.core.partition import Partition
from evenly.nn.layout import Layout
from evenly.nn.settings import Settings

Statistics = Running | Given | None


class Plan(NamedTuple):
    """How a norm reads an input, and what computes it.

    Args:
        kernel: what computes it; in a graph and for subclasses the reference.
        linear: the same without the activation.
        channel: the channel axis, counted from the front.
        dense: whether the input lies as the kernel has it; if not, it must be copied first.
        uneven: ghosts that do not divide the batch, which must be cut first; else 0.
        short: whether torch's own operator is done sooner than a kernel is reached (layer norm).
    """

    kernel: Kernel
    linear: Kernel
    channel: int
    dense: bool
    uneven: int = 0
    short: bool = False

    @property
    def norm(self) -> Norm:
        """What the kernel computes."""
        return self.kernel.norm

    @property
    def order(self) -> tuple[int, ...]:
        """The input's axes in memory order."""
        return self.kernel.order


Find = Callable[[Tensor, Tensors, Statistics, Settings], Plan]


def remembered(find: Find, x: Tensor, tensors: Tensors, statistics: Statistics, settings: Settings) -> Plan:
    """``find(x, tensors, statistics, settings)``, which may look at shapes, strides and types alone.

    Asked anew wherever a tensor's shape may be more than numbers: subclasses, traces, graphs.
    """
    if torch.compiler.is_compiling() or type(x) not in _PLAIN or torch._C._get_tracing_state() is not None:
        return find(x, tensors, statistics, settings)
    weight, bias = tensors[0], tensors[1]
    try:
        key = (
            settings, x.shape, x.stride(), x.dtype, x.device.type, backends.chosen(),
            None if weight is None else weight.shape, None if bias is None else bias.shape,
            None if statistics is None else (type(statistics), statistics[0].shape, statistics[1].shape),
        )  # fmt: skip
    except RuntimeError:  # no strides (sparse), no shape (nested)
        return find(x, tensors, statistics, settings)
    plan = _PLANS.get(key)
    if plan is None:
        plan = find(x, tensors, statistics, settings)
        if len(_PLANS) >= _MOST:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan


def planned(
    x: Tensor, settings: Settings, partition: Partition, layout: Layout, *, uneven: int = 0, short: bool = False
) -> Plan:
    """The plan for ``x``, once it is known how it lies and which elements share statistics."""
    eps = settings.eps_for(x.dtype)
    norm = Norm(partition, eps, settings.activation, settings.kind != "rms", settings.zero_masked)
    like = x if layout.dense else x.contiguous()
    kernel = prepared(norm, like, layout.order)
    plain = Norm(partition, eps, IDENTITY, norm.centered, norm.zero_masked)
    linear = kernel if norm.activation.name is None else prepared(plain, like, layout.order)
    return Plan(kernel, linear, layout.channel_axis, layout.dense, uneven, short)


def prepared(norm: Norm, x: Tensor, order: tuple[int, ...]) -> Kernel:
    """The kernel of a backend for tensors that have memory, the reference's for all others; made once for each kind."""
    if torch.compiler.is_compiling() or type(x) not in _PLAIN or x.is_meta:
        return reference.Kernel(norm, order)
    key = norm, order, x.shape, x.stride(), x.dtype, x.device.type, backends.chosen()
    kernel = _KERNELS.get(key)
    if kernel is None:
        kernel = backends.prepare(norm, x, order)
        if len(_KERNELS) >= _MOST:
            _KERNELS.clear()
        _KERNELS[key] = kernel
    return kernel


_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_MOST = 4096  # of ever new shapes (sequences of every length) no more than this are kept
_PLANS: dict[Any, Plan] = {}
_KERNELS: dict[Any, Kernel] = {}
