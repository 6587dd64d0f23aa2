"""Moments of several processes, merged by count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from evenly.core.moments import Moments


def shared(process_group: Any = None) -> bool:
    """Whether there are other processes in the group (None: in the default group)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(process_group) > 1


def gather(values: Tensor, process_group: Any = None) -> list[Tensor]:
    """``values`` of every process, in the order of ranks; all must have the same shape."""
    on_gpu = dist.get_backend(process_group) == "nccl"
    sent = values.to(torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu").contiguous()
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(received, sent, group=process_group)
    return [t.to(values.device) for t in received]


def merge(moments: Sequence[Moments], process_group: Any = None) -> list[Moments]:
    """The moments of each set over all processes; one message for all sets together.

    Args:
        moments: fields of shape ``(channels,)``; every process gives the same sets in the same
            order. A set that a process did not see has count 0.
        process_group: the processes; None: the default group.
    """
    if not moments or not shared(process_group):
        return list(moments)
    # All merging happens on one device, in float64 and in the order of ranks: the same bits everywhere.
    flat = torch.cat([torch.stack((m.count, m.mean, m.m2)).double().cpu() for m in moments], dim=1)
    count, mean, m2 = _merged(gather(flat, process_group))
    sizes = [len(m.mean) for m in moments]
    parts = zip(*(t.split(sizes) for t in (count, mean, m2)), strict=True)
    return [Moments(*(t.to(m.mean.device) for t in part)) for m, part in zip(moments, parts, strict=True)]


def _merged(everyone: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    whole = Moments.of(Moments(*flat) for flat in everyone)
    return whole.count, whole.mean, whole.m2
