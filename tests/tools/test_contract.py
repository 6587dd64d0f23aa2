"""The contract: eight planted breaches are found and named, healthy models pass."""

from __future__ import annotations

import pytest
import torch
from tests.tools import nets
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.tools.contract import BrokenError, check_model

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def _net(*more):
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), *more, nn.Linear(8, 3))


class _Noisy(nn.Module):
    """Dropout that does not know of eval()."""

    def forward(self, x):
        return F.dropout(x, 0.5)


class _Hidden(nn.Module):
    """A norm in a plain list."""

    def __init__(self):
        super().__init__()
        self.norms = [nn.BatchNorm1d(8)]

    def forward(self, x):
        return self.norms[0](x)


class _Thaws(nn.Module):
    """Means to freeze its norm, but its forward puts it back to training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        super().train(mode)
        self.norm.training = False
        return self

    def forward(self, x):
        self.norm.training = self.training
        return self.norm(x)


class _Stuck(nn.Module):
    """Does not pass eval() on to its norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        self.training = mode
        return self

    def forward(self, x):
        return self.norm(x)


class _Unsaved(nn.Module):
    """Statistics in buffers that are not part of the state_dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8), persistent=False)
        self.register_buffer("running_var", torch.ones(8), persistent=False)

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class _Checkpointed(nn.Module):
    """Recomputes its norm in backward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return checkpoint(self.norm, x, use_reentrant=False) if self.training else self.norm(x)


def _adapter():
    model = _net()
    model[0].requires_grad_(False)
    return model


def _conv():
    return nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.Conv1d(4, 2, 3, padding=1))


BREACHES = {
    "deterministic": (lambda: _net(_Noisy()), ("3",)),
    "alone": (lambda: _net(_Hidden()), ("3.norms[0]",)),
    "frozen": (lambda: _net(_Thaws()), ("3.norm",)),
    "modes": (lambda: _net(_Stuck()), ("3.norm",)),
    "state_dict": (lambda: _net(_Unsaved()), ("3",)),
    "trainable only": (_adapter, ("1",)),
    "counted once": (lambda: _net(_Checkpointed()), ("3.norm",)),
}


@pytest.mark.parametrize("clause", BREACHES)
def test_a_planted_breach_is_found(clause):
    """The clause is broken, with a difference above zero, and names the layer; raising says it."""
    make, layers = BREACHES[clause]
    model = make().train()

    verdicts = check_model(model, X)

    assert verdicts[clause].passed is False, str(verdicts)
    assert verdicts[clause].layers == layers
    assert verdicts[clause].difference > 0
    with pytest.raises(BrokenError, match=clause):
        verdicts.raise_if_broken()


def test_padding_that_leaks_is_found():
    """A group norm over padding makes a sample another one; the layer it enters at is named first."""
    x, lengths = torch.randn(3, 4, 12), [12, 7, 4]
    for n, size in enumerate(lengths):
        x[n, :, size:] = 0

    verdict = check_model(_conv(), x, lengths=lengths)["padded"]

    assert verdict.passed is False
    assert verdict.layers[0] in ("0", "1")
    assert verdict.difference > 0.01


def test_what_does_not_mix_places_is_padded_well():
    """Norms over channels and pointwise layers give a padded sample what it has alone."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))

    assert check_model(model, torch.randn(3, 6, 4), lengths=[6, 2, 4], axis=1).raise_if_broken()["padded"].passed


@pytest.mark.parametrize("name", nets.MAKERS)
@pytest.mark.parametrize("make", ["torch", "evenly", "frozen"])
def test_healthy_models_pass(name, make):
    """Nothing is broken, on torch's layers, on evenly's, and frozen; the model is left as it was."""
    model = nets.MAKERS[name]().train()
    if make == "evenly":
        evenly.convert(model)
    elif make == "frozen":
        evenly.freeze(model).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    verdicts = check_model(model, nets.digits()[0][:4])

    assert verdicts.broken == (), str(verdicts)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (verdicts["frozen"].passed is True) == (make == "frozen")


def test_evenly_cures_what_checkpointing_breaks():
    """A recomputation counts once with evenly's layers."""
    model = evenly.convert(_net(_Checkpointed()).train())

    assert check_model(model, X)["counted once"].passed is True


def test_lengths_that_do_not_fit_are_refused():
    """As many as samples, and none longer than the axis."""
    with pytest.raises(ValueError, match="2 lengths"):
        check_model(_conv(), torch.randn(3, 4, 12), lengths=[1, 2])
    with pytest.raises(ValueError, match="between 1 and 12"):
        check_model(_conv(), torch.randn(3, 4, 12), lengths=[1, 2, 13])
