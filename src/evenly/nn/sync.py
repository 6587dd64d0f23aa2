"""Statistics shared by processes: the messages that are sent between the four steps.

Forward sends one message, the moments of every process to every process; all merge them by the
same operations and so get the same bits. Backward sends one, the two sums of step 3, added up.
Every process takes part in both, whatever it has: an empty batch, a mask that hides all, an input
that needs no gradient. Kernels never hear of it.

The messages are torch's functional collectives, which a compiled graph can hold; they wait for a
peer as long as the process group's timeout says, on the device's own queue where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from evenly.backends.records import Sums
from evenly.core.moments import Moments

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Processes that share statistics (`evenly.nn.call.Call`'s ``sharing``).

    Args:
        name: of their process group.
        size: how many they are.
        refuses_single: whether one value per channel, over all processes, is an error. It is
            found only where looking at the merged count costs nothing, on the CPU.
    """

    name: str
    size: int
    refuses_single: bool = True

    def merge(self, moments: Moments) -> Moments:
        """Moments over all processes, from those of this one; differentiable."""
        whole = not isinstance(moments.count, Tensor)  # no mask
        count = torch.full_like(moments.mean, moments.count) if whole else moments.count
        merged = Moments(*_Merge.apply(count, moments.mean, moments.m2, self.name, self.size))
        if whole and self.refuses_single:
            _refuse_single(merged.count)
        return merged

    def add(self, sums: Sums) -> Sums:
        """The two sums over all processes; the gradients of weight and bias stay this process's own."""
        g, gx = _Add.apply(torch.stack([sums.g, sums.gx]), self.name)
        return sums._replace(g=g, gx=gx)


def processes(group: dist.ProcessGroup | str | None) -> Processes | None:
    """The processes of ``group`` that share statistics; None where there is nobody to share with.

    Args:
        group: a process group, its name, or None for all processes.

    Raises:
        ValueError: this process is not in the group, or there is no group of that name.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    found = _resolve(group)
    if dist.get_rank(found) < 0:
        raise ValueError(
            f"process {dist.get_rank()} is not in the layer's process group, so it cannot share its statistics; "
            "give the layer a group that it is in, or process_group=None for all processes."
        )
    size = dist.get_world_size(found)
    return None if size == 1 else Processes(found.group_name, size)


def gathered(value: Any, group: dist.ProcessGroup | str | None = None) -> list[Any]:
    """The values of all processes in rank order; ``[value]`` where there is one process.

    For what is sent once, not every step: the values travel pickled.
    """
    if processes(group) is None:
        return [value]
    found = _resolve(group)
    values: list[Any] = [None] * dist.get_world_size(found)
    _sent(lambda: dist.all_gather_object(values, value, group=found), found.group_name)
    return values


def everyone(work: Callable[[], T], group: dist.ProcessGroup | str | None = None) -> list[T]:
    """What ``work()`` returns on every process, in rank order; where it fails on one, all raise.

    Args:
        work: returns something that can be pickled, on the CPU.
        group: the processes; None for all.

    Example:
        >>> everyone(lambda: 3)      # without torch.distributed: one process
        [3]
    """
    try:
        mine = work()
    except Exception as error:
        gathered(_Failure(f"{type(error).__name__}: {error}"), group)
        raise
    values = gathered(mine, group)
    for rank, value in enumerate(values):
        if isinstance(value, _Failure):
            raise RuntimeError(f"process {rank} failed, so no process can go on; there it was {value.error}")
    return values


@dataclass(frozen=True)
class _Failure:
    """What a process sends in place of its value."""

    error: str


class _Merge(torch.autograd.Function):
    """Moments of all processes, merged; its transpose adds gradients over processes."""

    @staticmethod
    def forward(count: Tensor, mean: Tensor, m2: Tensor, name: str, size: int) -> tuple[Tensor, Tensor, Tensor]:
        packed = torch.stack([count.to(mean.dtype), mean, m2])
        parts = _gather(packed, name, size).double()  # a long chain of merges must not round
        merged = Moments(*parts.unbind(1)).union()
        return merged.count.to(mean.dtype), merged.mean.to(mean.dtype), merged.m2.to(mean.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        own_count, own_mean, _, ctx.name, _ = inputs
        count, mean, _ = output
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(own_count, own_mean, count, mean)

    @staticmethod
    def backward(ctx: Any, _: Tensor, dmean: Tensor, dm2: Tensor) -> tuple[Tensor | None, ...]:
        own_count, own_mean, count, mean = ctx.saved_tensors
        dmean, dm2 = _Add.apply(torch.stack([dmean, dm2]), ctx.name)
        share = own_count / torch.where(count > 0, count, 1)
        return None, dmean * share + dm2 * 2 * own_count * (own_mean - mean), dm2, None, None


class _Add(torch.autograd.Function):
    """The sum over all processes; its own transpose."""

    @staticmethod
    def forward(t: Tensor, name: str) -> Tensor:
        ops = torch.ops._c10d_functional
        total: Tensor = _sent(lambda: ops.wait_tensor(ops.all_reduce(t.contiguous(), "sum", name)), name)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.name = inputs

    @staticmethod
    def backward(ctx: Any, dt: Tensor) -> tuple[Any, None]:
        return _Add.apply(dt, ctx.name), None


def _gather(t: Tensor, name: str, size: int) -> Tensor:
    """``t`` of all processes, in rank order, on a new first axis."""
    ops = torch.ops._c10d_functional
    flat: Tensor = _sent(lambda: ops.wait_tensor(ops.all_gather_into_tensor(t.contiguous(), size, name)), name)
    return flat.view(size, *t.shape)


def _sent(message: Callable[[], Any], name: str) -> Any:
    """What ``message`` returns; a peer that does not answer is named as what it is."""
    if torch.compiler.is_compiling():
        return message()
    try:
        return message()
    except RuntimeError as error:
        group = _resolve(name)
        raise RuntimeError(
            f"process {dist.get_rank(group)} of {dist.get_world_size(group)} (process group {name!r}) waited in vain "
            f"for another's statistics: {error}\n"
            "A process has died, or runs fewer steps than the others: let one that is out of data go on with "
            "empty batches (x[:0]), or make all run the same number of steps."
        ) from error


def _resolve(group: dist.ProcessGroup | str | None) -> dist.ProcessGroup:
    if not isinstance(group, str):
        return group if group is not None else dist.distributed_c10d._get_default_group()
    try:
        found: dist.ProcessGroup = _by_name(group)
    except RuntimeError:
        raise ValueError(
            f"there is no process group named {group!r} here (a copied or unpickled layer keeps its group's name); "
            "set the layer's process_group, or None for all processes."
        ) from None
    return found


# Private, but what torch's own functional collectives find a group by.
_by_name: Any = getattr(dist.distributed_c10d, "_resolve_process_group", None) if dist.is_available() else None


def _refuse_single(count: Tensor) -> None:
    """Refuse one value per channel over all processes: all find the same, so all raise."""
    if torch.compiler.is_compiling() or count.device.type != "cpu" or type(count) is not Tensor:
        return
    if torch._C._functorch.peek_interpreter_stack() is None and count.numel() and float(count.max()) == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got 1 over all processes; use a larger batch, "
            "or call eval()."
        )
