"""The sight: statistics and modes seen at the call that normalises, whoever makes it."""

from __future__ import annotations

import pytest
import torch
from tests.tools import nets
from torch import nn
from torch.nn import functional as F

import evenly
from evenly.tools.diagnose import diagnose
from evenly.tools.probe import Subject
from evenly.tools.recalibrate import recalibrate

C, T = 5, 7
X = torch.randn(64, T, C, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, C + 1) + 3


class _Last(nn.BatchNorm1d):
    """Channels last."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class _Flat(nn.BatchNorm1d):
    """All places in one axis."""

    def forward(self, x):
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class _Ours(evenly.BatchNorm1d):
    """evenly's, channels last."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class _Functional(nn.Module):
    """Buffers and a functional call."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(x.transpose(1, 2), self.running_mean, self.running_var, training=self.training).transpose(
            1, 2
        )


class _Written(nn.Module):
    """The formula, written out on the last axis."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = 1e-5

    def forward(self, x):
        var, mean = torch.var_mean(x, (0, 1), correction=0) if self.training else (self.running_var, self.running_mean)
        return (x - mean) / (var + self.eps).sqrt()


class _InList(nn.Module):
    """A norm that eval() and state_dict() do not reach."""

    def __init__(self, channels):
        super().__init__()
        self.norms = [_Last(channels)]

    def forward(self, x):
        return self.norms[0](x)


class _Holder:
    """What is normalised is inside an object."""

    def __init__(self, features):
        self.features = features


class _Sparse(_Functional):
    """Takes an object."""

    def forward(self, x):
        return F.batch_norm(x.features, self.running_mean, self.running_var, training=self.training)


class _OfObjects(nn.Module):
    """Makes the object."""

    def __init__(self, channels):
        super().__init__()
        self.norm = _Sparse(channels)

    def forward(self, x):
        return self.norm(_Holder(x.reshape(-1, C))).reshape(x.shape)


KINDS = {k.__name__: k for k in (_Last, _Flat, _Ours, _Functional, _Written, _InList, _OfObjects)}


def _site(model):
    subject = Subject(model)
    subject.look(X)
    return next(iter(subject.sites.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_of_what_is_normalised(kind):
    """Recalibrating writes mean and variance of each channel, on whatever axis the norm has them."""
    model = KINDS[kind](C)

    recalibrate(model, X.split(16))

    site = _site(model)
    flat = X.reshape(-1, C)
    torch.testing.assert_close(site.mean.detach(), flat.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(site.var.detach(), flat.var(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", ["script", "trace", "export"])
def test_programs_are_seen(make):
    """Scripted, traced and exported: the norm is seen in use, and nothing moves."""
    model = nn.Sequential(nn.Linear(C, 4), nn.BatchNorm1d(4)).eval()
    x = X[:, 0]
    program = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, x),
        "export": lambda: torch.export.export(model, (x,)).module(),
    }
    with pytest.warns() if make != "export" else torch.no_grad():  # torch warns that scripts are of the past
        made = program[make]()
        diagnosis = diagnose(made, [x])

    assert diagnosis.looked
    assert "1 batch norm, 1 seen in use" in diagnosis.examined[0]
    assert not model[1].running_mean.any()


class _Held(nn.Module):
    """Keeps its norms in evaluation form."""

    def __init__(self):
        super().__init__()
        self.net = nets.trained("dense")

    def train(self, mode=True):
        super().train(mode)
        for norm in self.net:
            if isinstance(norm, nn.BatchNorm1d):
                norm.eval()
        return self

    def forward(self, x):
        return self.net(x)


def test_norms_that_train_holds_have_no_gap_and_stay():
    """Both forms are one, so nothing is wrong with other data; recalibrate changes nothing and says why."""
    model, lines = _Held(), []
    inverted = [(1 - x, y.float()) for x, y in nets.batches(4)]
    before = {k: v.clone() for k, v in model.state_dict().items()}

    diagnosis = diagnose(model, inverted)
    recalibrate(model, inverted, say=lines.append)

    assert diagnosis.gap is None
    assert diagnosis.worst in (None, "note")
    assert any("kept in evaluation form by train()" in line for line in diagnosis.examined)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any("frozen" in line for line in lines)


def test_a_norm_that_hides_its_input_is_left_and_named():
    """Arithmetic that is not the formula is not measured on a guessed axis: recalibrate refuses by name."""

    class Hidden(_Written):
        def forward(self, x):
            return super().forward(x).relu() + 1

    model = nn.Sequential(Hidden(C))

    with pytest.raises(ValueError, match=r"compute by themselves.*0"):
        recalibrate(model, [X])
    assert "not seen" in " ".join(diagnose(model, [X]).examined)


def test_nothing_to_see_is_not_health():
    """A model without norms is not called healthy, and fails where that is asked for."""
    diagnosis = diagnose(nn.Linear(3, 2), [torch.randn(8, 3)])

    assert "no norm that I know" in diagnosis.table()
    assert (diagnosis.exit_status(), diagnosis.exit_status(strict=True)) == (0, 1)


def test_until_stops_and_says_so():
    """Data that is alike stops it long before the end, and the statistics are right to that precision."""
    lines = []
    x = torch.randn(256 * 64, 3, generator=torch.Generator().manual_seed(1)) * 2 + 5

    model = recalibrate(nn.BatchNorm1d(3), x.split(64), until=0.02, say=lines.append)

    assert any(line.startswith("stopped after ") for line in lines)
    assert sum(line.startswith("measured batch") for line in lines) < 129
    torch.testing.assert_close(model.running_mean, x.mean(0), rtol=0.05, atol=0)


def test_every_batch_left_out_is_an_error():
    """Where no batch is finite nothing is written, and the layer is named."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    nn.init.constant_(model[0].weight, torch.nan)

    with pytest.raises(ValueError, match="every batch was left out in 1"):
        recalibrate(model, [torch.randn(8, 3)])
    assert not model[1].running_mean.any()
