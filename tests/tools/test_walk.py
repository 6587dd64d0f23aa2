"""The walk over a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evenly
from evenly.tools import walk


class _Frozen(nn.Module):
    """A batch norm as detectron2 writes it: buffers only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))


def _model() -> nn.Sequential:
    shared = nn.BatchNorm1d(3)
    return nn.Sequential(nn.Linear(3, 3), shared, nn.Dropout(0.5), shared, nn.LayerNorm(3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("module", "batch", "norm"),
    [
        (nn.BatchNorm2d(3), True, True),
        (nn.SyncBatchNorm(3), True, True),
        (evenly.BatchNorm(3), True, True),
        (nn.LazyBatchNorm1d(), True, True),
        (_Frozen(), True, True),
        (nn.InstanceNorm2d(3, track_running_stats=True), False, True),
        (evenly.GroupNorm(1, 3), False, True),
        (nn.RMSNorm(3), False, True),
        (nn.Linear(3, 3), False, False),
    ],
)
def test_what_is_a_norm(module, batch, norm):
    """A norm is told by its class or by its buffers, and batch norms from the others."""
    assert (walk.is_batch_norm(module), walk.is_norm(module)) == (batch, norm)


def test_norms_come_once_by_their_first_name():
    """A shared norm is listed once, and its other places are still known."""
    model = _model()

    assert [name for name, _ in walk.norms(model)] == ["1", "4"]
    assert [place.name for place in walk.places(model) if place.module is model[1]] == ["1", "3"]


def test_lazy_and_untracked_norms_hold_no_statistics():
    """Only norms whose running statistics can be read are tracking."""
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))

    assert list(walk.tracking(model)) == ["2"]


def test_replace_keeps_sharing():
    """A shared module gets one substitute, at all its places."""
    model = _model()

    walk.replace(model, lambda name, m: nn.GroupNorm(1, 3) if walk.is_batch_norm(m) else m)

    assert isinstance(model[1], nn.GroupNorm)
    assert model[1] is model[3]


def test_replace_returns_the_substitute_of_the_root():
    """A model that is a norm itself is replaced by what is returned."""
    assert isinstance(walk.replace(nn.BatchNorm1d(3), lambda name, m: nn.Identity()), nn.Identity)


def _disturb(model: nn.Sequential) -> None:
    model[1].momentum = None
    model(torch.randn(8, 3)).sum().backward()
    model.eval()
    with torch.no_grad():
        model[0].weight.zero_()
    raise RuntimeError("inside")


def test_restored_puts_everything_back_after_an_error():
    """Values, gradients, modes, momentum and randomness are as before, whatever happened inside."""
    model = _model().train()
    model[4].eval()
    model[0].weight.grad = torch.ones(3, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()

    with pytest.raises(RuntimeError, match="inside"), walk.restored(model):
        _disturb(model)

    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(3, 3))
    assert [m.training for m in model] == [True, True, True, True, False, True]
    assert model[1].momentum == 0.1
    assert torch.equal(random, torch.get_rng_state())


def test_restored_puts_replaced_buffers_back():
    """A buffer that was replaced, not written, is the old tensor again."""
    model = nn.BatchNorm1d(3)
    buffer = model.running_mean

    with walk.restored(model):
        model.running_mean = torch.ones(3)

    assert model.running_mean is buffer
