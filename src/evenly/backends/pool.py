"""Recycled memory for large outputs.

A fresh block is handed out page by page, and from half a mebibyte on the page faults can cost more
than the norm itself. So the pool keeps storages of that size and more, and uses one again once
nothing but the pool refers to it: no tensor, no view, nothing saved for backward, no storage object.

There is no lock, so a fork inherits none. A thread claims a block by popping it from its queue,
which Python does in one step; what no other thread can pop, no other thread can judge or hand out.
A weak reference to a storage is not counted: whoever upgrades one sees the memory that follows.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage

SMALLEST = 512 << 10  # bytes; below, the allocator recycles as fast
HUGE_PAGE = 2 << 20  # bytes; a smaller block cannot lie on one
IDLE = 32 << 20  # bytes that may always lie idle

# Private to torch, so its absence is provided for: without it nothing is pooled. Without the
# interpreter's lock a count is old before it is compared.
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    _use_count = None
_CPU = torch.device("cpu")


class Block(NamedTuple):
    """A storage, where it was when it was kept, what asks for its use count, and when it was last handed out."""

    storage: UntypedStorage
    address: int
    handle: int
    used: int

    def alone(self) -> bool:
        """Whether nothing but this block refers to the storage: neither a tensor in C++ nor an object in Python."""
        return _use_count(self.handle) == 1 and sys.getrefcount(self.storage) == _ALONE  # type: ignore[misc]

    def whole(self, size: int) -> bool:
        """Whether the storage is as it was kept: not resized, moved to shared memory or lent to NumPy."""
        storage = self.storage
        return storage.nbytes() == size and storage.data_ptr() == self.address and storage.resizable()


def _references_of_a_lone_block() -> int:
    """What `sys.getrefcount` says inside `Block.alone` of an object that only the block refers to."""
    counts: list[int] = []

    class Lone(Block):
        def alone(self) -> bool:
            counts.append(sys.getrefcount(self.storage))
            return True

    Lone(object(), 0, 0, 0).alone()  # type: ignore[arg-type]
    return counts[0]


_ALONE = _references_of_a_lone_block()


class Pool:
    """Storages by size, in the order in which they were last handed out.

    Idle storages take no more than the largest outputs that were in use at once lately, and 32 MiB:
    a training step finds its own memory again, and sequences of ever new lengths keep next to nothing.

    Args:
        limit: bytes that the pool may keep, in use or not; 0 keeps nothing.
        advise: called with address and size of a fresh block (to ask for huge pages).
    """

    def __init__(self, limit: int, advise: Callable[[int, int], None] = lambda address, size: None) -> None:
        self.limit = limit
        self._advise = advise
        self._blocks: dict[int, deque[Block]] = {}
        self._taken = 0  # how often a block was handed out; two threads may draw one number, which orders nothing
        self._most_in_use = 0  # bytes; declines as fresh blocks are made

    @property
    def kept(self) -> int:
        """Bytes of all storages that the pool refers to, in use or not."""
        return sum(size * len(blocks) for size, blocks in self._blocks.copy().items())

    def empty_like(self, x: Tensor) -> Tensor:
        """An uninitialised tensor of ``x``'s shape, strides and type; ``x`` is dense and on the CPU."""
        size = x.nbytes
        if size < SMALLEST or not self._pools(size):  # most calls are small, and end here
            return torch.empty_like(x)
        return self._take(size, x.dtype, x.shape, x.stride())

    def empty_bytes(self, size: int) -> Tensor:
        """An uninitialised tensor of ``size`` bytes."""
        if not self._pools(size):
            return torch.empty(size, dtype=torch.uint8, device=_CPU)
        return self._take(size, torch.uint8, (size,), (1,))

    def flush(self) -> int:
        """Let go of all storages; returns how many bytes were kept. Those in use live on."""
        kept = self.kept
        self._blocks.clear()
        return kept

    def _pools(self, size: int) -> bool:
        return size >= SMALLEST and self.limit > 0 and _use_count is not None

    def _take(self, size: int, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
        self._taken += 1
        block = self._claim(size)
        if block is None:
            return self._fresh(size, torch.empty_strided(shape, stride, dtype=dtype, device=_CPU))
        y = torch.empty(0, dtype=dtype, device=_CPU).set_(block.storage, 0, shape, stride)
        self._keep(size, block)  # only now that a tensor refers to it may another thread judge it
        return y

    def _claim(self, size: int) -> Block | None:
        """A block of this size that only the pool refers to, out of its queue."""
        blocks = self._blocks.get(size)
        if blocks is None:
            return None
        for _ in range(len(blocks)):
            try:
                block = blocks.popleft()
            except IndexError:  # another thread was faster
                return None
            if not block.alone():
                blocks.append(block)
            elif block.whole(size):
                return block
        return None

    def _keep(self, size: int, block: Block) -> None:
        self._blocks.setdefault(size, deque()).append(block._replace(used=self._taken))

    def _fresh(self, size: int, y: Tensor) -> Tensor:
        storage = y.untyped_storage()
        if size >= HUGE_PAGE:
            self._advise(storage.data_ptr(), size)
        if self._make_room(size):
            self._keep(size, Block(storage, storage.data_ptr(), storage._cdata, 0))
        return y

    def _make_room(self, size: int) -> bool:
        """Let idle storages go, the longest unused first, until no more lie idle than may; whether ``size`` fits."""
        idle: list[tuple[int, int]] = []  # when last used, size
        kept = 0
        for other, blocks in self._blocks.copy().items():
            kept += other * len(blocks)
            idle += [(block.used, other) for block in blocks.copy() if block.alone()]
        lying = sum(other for _, other in idle)
        self._most_in_use = max(kept - lying + size, self._most_in_use - size // 8)
        for _, other in sorted(idle):
            if lying <= max(IDLE, self._most_in_use) and kept + size <= self.limit:
                break
            if self._drop_idle(other):
                lying, kept = lying - other, kept - other
        return kept + size <= self.limit

    def _drop_idle(self, size: int) -> bool:
        """Let the longest unused idle storage of this size go."""
        block = self._claim(size)
        if not self._blocks.get(size, True):
            self._blocks.pop(size, None)
        return block is not None


def default_limit() -> int:
    """Bytes: ``EVENLY_POOL`` mebibytes where that variable is set, else an eighth of the memory."""
    if "EVENLY_POOL" in os.environ:
        return int(os.environ["EVENLY_POOL"]) << 20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
