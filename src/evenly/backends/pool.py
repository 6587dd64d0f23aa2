"""Recycled memory for large outputs.

A fresh block is handed out page by page, and from half a mebibyte on the page faults can cost more
than the norm itself. So storages of that size and more are kept, and one is used again once nothing
but the pool refers to it: no tensor, no view, nothing saved for backward.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage

SMALLEST = 512 << 10  # bytes; below, the allocator recycles as fast
HUGE_PAGE = 2 << 20  # bytes; a smaller block cannot lie on one

# Private to torch, so its absence is provided for: without it nothing is pooled.
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class Block(NamedTuple):
    """A storage, where it was when it was kept, and what asks for its use count."""

    storage: UntypedStorage
    address: int
    handle: int


class Pool:
    """Storages by size, in the order in which they were last handed out.

    Args:
        limit: bytes that the pool may keep, in use or not; 0 keeps nothing.
        advise: called with address and size of a fresh block (to ask for huge pages).
    """

    def __init__(self, limit: int, advise: Callable[[int, int], None] = lambda address, size: None) -> None:
        self.limit = limit
        self.kept = 0
        self._advise = advise
        self._blocks: defaultdict[int, deque[Block]] = defaultdict(deque)
        self._lock = Lock()

    def empty_like(self, x: Tensor) -> Tensor:
        """An uninitialised tensor of ``x``'s shape, strides and type; ``x`` is dense."""
        size = x.nbytes
        if size < SMALLEST or not self._pools(size):  # most calls are small, and end here
            return torch.empty_like(x)
        return self._take(size, x.dtype, x.shape, x.stride())

    def empty_bytes(self, size: int) -> Tensor:
        """An uninitialised tensor of ``size`` bytes."""
        if not self._pools(size):
            return torch.empty(size, dtype=torch.uint8)
        return self._take(size, torch.uint8, (size,), (1,))

    def flush(self) -> int:
        """Let go of all storages; returns how many bytes were kept. Those in use live on."""
        with self._lock:
            kept, self.kept = self.kept, 0
            self._blocks.clear()
        return kept

    def _pools(self, size: int) -> bool:
        return size >= SMALLEST and self.limit > 0 and _use_count is not None

    def _take(self, size: int, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
        with self._lock:
            storage = self._idle(size)
        if storage is None:
            return self._fresh(size, torch.empty_strided(shape, stride, dtype=dtype))
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, stride)

    def _idle(self, size: int) -> UntypedStorage | None:
        """A storage of this size that only the pool refers to, moved to the end of the queue."""
        blocks = self._blocks.get(size)
        if not blocks:
            return None
        count: Callable[[int], int] = _use_count  # type: ignore[assignment]  # empty_like made sure of it
        for _ in range(len(blocks)):
            storage, address, handle = blocks[0]
            if count(handle) != 1:
                blocks.rotate(-1)
            elif storage.nbytes() != size or storage.data_ptr() != address:  # resized, or moved to shared memory
                blocks.popleft()
                self.kept -= size
            else:
                blocks.rotate(-1)
                return storage
        return None

    def _fresh(self, size: int, y: Tensor) -> Tensor:
        storage = y.untyped_storage()
        if size >= HUGE_PAGE:
            self._advise(storage.data_ptr(), size)
        with self._lock:
            if self._make_room(size):
                self._blocks[size].append(Block(storage, storage.data_ptr(), storage._cdata))
                self.kept += size
        return y

    def _make_room(self, size: int) -> bool:
        """Drop idle storages of other sizes until ``size`` bytes fit under the limit."""
        for other in [*self._blocks]:
            blocks = self._blocks[other]
            for _ in range(len(blocks)):
                if self.kept + size <= self.limit:
                    return True
                block = blocks.popleft()
                if _use_count(block.handle) == 1:  # type: ignore[misc]
                    self.kept -= other
                else:
                    blocks.append(block)
        return self.kept + size <= self.limit


def default_limit() -> int:
    """Bytes: ``EVENLY_POOL`` mebibytes where that variable is set, else an eighth of the memory."""
    if "EVENLY_POOL" in os.environ:
        return int(os.environ["EVENLY_POOL"]) << 20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
