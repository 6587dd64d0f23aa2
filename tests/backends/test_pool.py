"""Recycled memory: used again only when nobody looks, bounded, flushed, switched off."""

from __future__ import annotations

import ctypes
import pickle
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evenly.backends.pool import IDLE, SMALLEST, Pool, _use_count

pytestmark = pytest.mark.skipif(_use_count is None, reason="this torch does not tell how often a storage is used")
MIB = 1 << 20


@pytest.fixture
def x() -> Tensor:
    """The smallest tensor that is pooled, channels last."""
    return torch.zeros(1, 8, 128, 128, dtype=torch.float32).to(memory_format=torch.channels_last)


def test_an_output_takes_the_place_of_a_dead_one(x: Tensor) -> None:
    """Shape, strides and type are the input's; the memory is that of the output before."""
    pool = Pool(64 * MIB)
    first = pool.empty_like(x)
    address = first.data_ptr()
    del first

    second = pool.empty_like(x)

    assert x.nbytes == SMALLEST
    assert (second.data_ptr(), second.shape, second.stride(), second.dtype) == (address, x.shape, x.stride(), x.dtype)


HOLDS = {
    "tensor": lambda t: t,
    "view": lambda t: t[0, 3:5],
    "detached": lambda t: t.detach(),
    "array": lambda t: t.numpy(),
    "storage": lambda t: t.untyped_storage(),
    "list of storages": lambda t: [t.untyped_storage()],
    "DLPack capsule": lambda t: torch.utils.dlpack.to_dlpack(t),
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_what_is_still_seen_is_left_alone(x: Tensor, hold: Callable[[Tensor], object]) -> None:
    """A tensor, a view, a NumPy array, a storage object or a DLPack capsule keeps its memory."""
    pool = Pool(64 * MIB)
    y = pool.empty_like(x).fill_(3)
    look = torch.frombuffer((ctypes.c_char * y.nbytes).from_address(y.data_ptr()), dtype=torch.float32)
    kept = hold(y)
    del y

    others = [pool.empty_like(x).fill_(5) for _ in range(3)]

    assert len({t.data_ptr() for t in others}) == 3
    assert (look == 3).all()
    assert kept is not None


def test_threads_never_share_memory(x: Tensor) -> None:
    """Six threads that fill and read outputs of one pool read what they wrote."""
    pool, wrong = Pool(64 * MIB), []

    def work(mark: int) -> None:
        for _ in range(300):
            a, b = pool.empty_like(x).fill_(mark), pool.empty_like(x).fill_(-mark)
            if float(a.sum()) != mark * x.numel() or float(b.sum()) != -mark * x.numel():
                wrong.append(mark)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert wrong == []


def test_ever_new_sizes_leave_little_behind() -> None:
    """A thousand lengths, one output at a time, keep what may always lie idle, and no queue without a block."""
    pool = Pool(4096 * MIB)
    for length in range(1000):
        pool.empty_like(torch.empty(SMALLEST // 4 + 1024 * (length * 7919 % 1000)))

    assert pool.kept <= IDLE + 8 * MIB
    assert all(pool._blocks.values())


def test_a_step_finds_its_own_memory_again() -> None:
    """Outputs that lived together in one step, of many sizes, are all recycled in the next."""
    pool = Pool(4096 * MIB)
    shapes = [torch.empty(SMALLEST // 4 + 4096 * i) for i in range(100)]
    first = {t.data_ptr() for t in [pool.empty_like(x) for x in shapes]}

    second = {t.data_ptr() for t in [pool.empty_like(x) for x in shapes]}

    assert len(first) == 100 and second == first


def test_memory_lent_to_numpy_is_not_handed_out_again(x: Tensor) -> None:
    """An array makes its storage one that cannot be resized; a later output can."""
    pool = Pool(64 * MIB)
    pool.empty_like(x).numpy()

    y = pool.empty_like(x)

    assert y.untyped_storage().resizable()


def test_saved_for_backward_is_left_alone(x: Tensor) -> None:
    """What the graph holds is not written over."""
    pool = Pool(64 * MIB)
    leaf = torch.ones((), requires_grad=True)
    loss = (pool.empty_like(x).fill_(2) * leaf).sum()

    pool.empty_like(x).fill_(7)
    loss.backward()

    assert leaf.grad == 2 * x.numel()


def test_the_limit_bounds_what_is_kept(x: Tensor) -> None:
    """More than the limit is not kept, and idle storages make room for other sizes."""
    pool = Pool(2 * x.nbytes)
    del_me = [pool.empty_like(x) for _ in range(5)]
    assert pool.kept == 2 * x.nbytes
    del_me.clear()

    larger = pool.empty_like(torch.zeros(2, *x.shape[1:]))

    assert pool.kept == larger.nbytes == 2 * x.nbytes


def test_flush_lets_go(x: Tensor) -> None:
    """After a flush nothing is kept; what is in use lives on."""
    pool = Pool(64 * MIB)
    y = pool.empty_like(x).fill_(1)

    assert pool.flush() == x.nbytes

    assert pool.kept == 0
    assert (y == 1).all()


def test_a_limit_of_zero_switches_off(x: Tensor) -> None:
    """Nothing is kept."""
    pool = Pool(0)
    pool.empty_like(x)

    assert pool.kept == 0


def test_resized_and_shared_storages_are_dropped(x: Tensor) -> None:
    """Memory that grew, or moved to where other processes see it, is not handed out again."""
    pool = Pool(64 * MIB)
    for spoil in (lambda t: t.resize_(3 * x.numel()), lambda t: t.share_memory_()):
        spoil(pool.empty_like(x))

        y = pool.empty_like(x).fill_(1)

        assert y.untyped_storage().nbytes() == x.nbytes
        assert not y.is_shared()
        del y
        pool.flush()


def test_outputs_pickle_and_work_in_inference_mode(x: Tensor) -> None:
    """Pooled tensors are ordinary ones, also after their memory served in inference mode."""
    pool = Pool(64 * MIB)
    with torch.inference_mode():
        assert pool.empty_like(x).fill_(1).is_inference()

    y = pool.empty_like(x).fill_(4)

    assert not y.is_inference()
    assert torch.equal(pickle.loads(pickle.dumps(y)), y)
    (y.requires_grad_() * 2).sum().backward()
    assert (y.grad == 2).all()
