"""Recycled memory: used again only when nobody looks, bounded, flushed, switched off."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from evenly.backends.pool import SMALLEST, Pool, _use_count

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


@pytest.mark.parametrize("hold", [lambda t: t, lambda t: t[0, 3:5], lambda t: t.detach(), lambda t: t.numpy()])
def test_what_is_still_seen_is_left_alone(x: Tensor, hold) -> None:  # type: ignore[no-untyped-def]
    """A tensor, a view, a detached alias or a NumPy array keeps its memory."""
    pool = Pool(64 * MIB)
    kept = hold(pool.empty_like(x).fill_(3))

    others = [pool.empty_like(x).fill_(5) for _ in range(3)]

    assert len({t.data_ptr() for t in others}) == 3
    assert (kept == 3).all()


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
