"""Fixed statistics."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import evenly
from evenly.tools.freeze import freeze, is_frozen, unfreeze


def _model(kind=nn.BatchNorm1d) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), kind(4))
    model[1].running_mean.fill_(0.5)
    return model


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, evenly.BatchNorm1d])
def test_training_uses_and_keeps_the_running_statistics(kind):
    """Under train() the output is that of eval(), nothing is counted, and weight and bias learn."""
    model, x = _model(kind), torch.randn(8, 3)
    expected = model.eval()(x)

    y = freeze(model).train()(x)
    y.sum().backward()

    assert torch.equal(y, expected)
    assert int(model[1].num_batches_tracked) == 0
    assert model[1].bias.grad.tolist() == [8.0] * 4


def test_copies_and_files_stay_frozen():
    """A deep copy and a pickled model are frozen too, and the state_dict has the same keys."""
    model = _model()
    keys = list(model.state_dict())
    file = io.BytesIO()
    torch.save(freeze(model), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)

    for m in (copy.deepcopy(model), loaded):
        m.train()(torch.randn(8, 3))
        assert is_frozen(m[1])
        assert list(m.state_dict()) == keys
        assert int(m[1].num_batches_tracked) == 0


def test_unfreeze_undoes_it():
    """After unfreeze the norms train again, in the model's mode, with no hook left."""
    model = unfreeze(freeze(freeze(_model().train())))

    assert model[1].training
    assert not model[1]._forward_pre_hooks
    model(torch.randn(8, 3))
    assert int(model[1].num_batches_tracked) == 1


def test_other_hooks_survive():
    """unfreeze takes away its own hook only."""
    model, seen = _model(), []
    model[1].register_forward_pre_hook(lambda m, args: seen.append(1))

    unfreeze(freeze(model))(torch.randn(8, 3))

    assert seen == [1]
