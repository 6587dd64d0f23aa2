"""Exact running statistics over data."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tools import nets
from torch import nn
from torch.optim.swa_utils import AveragedModel

import evenly
from evenly.tools import measure
from evenly.tools.freeze import freeze
from evenly.tools.recalibrate import recalibrate
from evenly.tools.sites import sites


def _state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("cuts", [(100,), (50, 50), (33, 66, 1), (97, 2, 1)])
def test_any_cut_of_the_data_gives_its_population(cuts):
    """Batches are pooled by count: the first norm gets the exact statistics of all samples, however cut."""
    x = torch.randn(100, 3, dtype=torch.double) * 5 + 100
    model = nn.Sequential(nn.BatchNorm1d(3)).double()

    recalibrate(model, x.split(list(cuts)))

    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    torch.testing.assert_close(model[0].running_var, x.var(0))
    assert int(model[0].num_batches_tracked) == len(cuts)


def test_later_layers_see_what_they_see_in_training():
    """With one batch every layer gets what training with momentum 1 writes; dropout is off."""
    model = nets.trained("resnet")
    trained = copy.deepcopy(model).train()
    for m in trained.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    x = nets.digits()[0][:64]

    trained(x)
    recalibrate(model, [x])

    for (name, a), (_, b) in zip(model.named_buffers(), trained.named_buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_dropout_is_off_and_modes_come_back():
    """Dropout before a norm does not enter its statistics, and every module keeps its mode."""
    x = torch.randn(500, 4)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).train()

    recalibrate(model, [x])

    torch.testing.assert_close(model[1].running_var, x.var(0))
    assert all(m.training for m in model.modules())


def test_calls_of_a_shared_layer_are_pooled():
    """A layer called twice gets the statistics of both its inputs."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x) + self.norm(x + 10)

    x = torch.randn(40, 2)
    model = recalibrate(Twice(), [x])

    torch.testing.assert_close(model.norm.running_var, torch.cat([x, x + 10]).var(0))


def test_masks_of_evenly_s_layers_count():
    """Masked positions do not enter, as in training."""
    x, keep = torch.randn(8, 3, 5), torch.rand(8, 5) < 0.6
    model = evenly.BatchNorm1d(3)

    recalibrate(model, [(x, keep)], forward=lambda model, batch: model(batch[0], mask=batch[1]))

    values = x.movedim(1, -1)[keep]
    torch.testing.assert_close(model.running_mean, values.mean(0))
    torch.testing.assert_close(model.running_var, values.var(0))


def test_mappings_are_keywords():
    """A batch that is a mapping is given as keywords."""
    x = torch.randn(8, 3)

    torch.testing.assert_close(recalibrate(nn.BatchNorm1d(3), [{"input": x}]).running_mean, x.mean(0))


def test_float32_statistics_of_far_data_are_exact():
    """Mean 1e4 and standard deviation 1: the variance is not lost, as E[x²] − E[x]² would lose it."""
    x = torch.randn(4000, 1) + 1e4

    model = recalibrate(nn.BatchNorm1d(1), x.split(100))

    torch.testing.assert_close(model.running_var, x.double().var(0).float(), rtol=1e-3, atol=0)


def test_limit_stops_an_endless_iterable():
    """Only so many batches are asked for."""
    x = torch.randn(8, 3)

    def endless():
        yield x
        yield x
        raise AssertionError("a third batch was asked for")

    model = recalibrate(nn.BatchNorm1d(3), endless(), limit=2)

    torch.testing.assert_close(model.running_mean, x.mean(0))


def test_any_error_leaves_the_model_as_it_was():
    """An error in the third batch changes nothing at all."""
    model = nets.trained("dense").train()
    before = _state(model)
    x = nets.digits()[0]

    with pytest.raises(RuntimeError):
        recalibrate(model, [x[:64], x[64:128], torch.randn(2, 3)])

    assert _same(before, model.state_dict())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_a_batch_with_nan_is_left_out_and_named():
    """One NaN does not poison the statistics."""
    x, lines = torch.randn(8, 3), []
    bad = x.clone()
    bad[0, 0] = torch.nan

    model = recalibrate(nn.BatchNorm1d(3), [x, bad], say=lines.append)

    torch.testing.assert_close(model.running_mean, x.mean(0))
    assert any("not finite" in line for line in lines)


def test_poisoned_statistics_are_cured():
    """NaN in the running statistics is overwritten, not blended."""
    x = torch.randn(8, 3)
    model = nn.BatchNorm1d(3)
    model.running_var.fill_(torch.nan)

    torch.testing.assert_close(recalibrate(model, [x]).running_var, x.var(0))


def test_frozen_layers_stay():
    """What freeze holds, recalibrate does not touch."""
    model = freeze(nn.BatchNorm1d(3))
    before = _state(model)

    recalibrate(model, [torch.randn(8, 3) + 5])

    assert _same(before, model.state_dict())


def test_counters_agree_afterwards_and_never_fall():
    """A layer counted twice and one that is new count as the most trained one does."""
    model = nets.trained("dense")
    model[2].num_batches_tracked.fill_(401)
    model[5].num_batches_tracked.fill_(0)

    recalibrate(model, nets.batches(4))

    assert [int(model[i].num_batches_tracked) for i in (2, 5)] == [404, 404]


def test_after_weight_averaging():
    """It takes the place of update_bn: with equal batches the means agree."""
    model = AveragedModel(nets.trained("dense"))
    other = copy.deepcopy(model)
    batches = nets.batches(4)

    recalibrate(model, batches)
    torch.optim.swa_utils.update_bn(batches, other)

    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batches_is_an_error(batches):
    """Nothing measured is not written as if it were."""
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(nn.BatchNorm1d(3), batches)


def test_wrong_use_says_what_to_do():
    """One tensor, a model without batch norms and a limit of zero are refused."""
    x = torch.randn(8, 3)
    with pytest.raises(TypeError, match=r"give \[batch\]"):
        recalibrate(nn.BatchNorm1d(3), x)
    with pytest.raises(ValueError, match="no batch norm"):
        recalibrate(nn.Linear(3, 3), [x])
    with pytest.raises(ValueError, match="limit"):
        recalibrate(nn.BatchNorm1d(3), [x], limit=0)


def test_distance_is_zero_where_statistics_agree():
    """A recalibrated layer is at distance 0 from its data, up to n/(n−1); a spoiled one is not."""
    x = torch.randn(1000, 3)
    model = recalibrate(nn.BatchNorm1d(3), [x])
    moments = measure.moments_of(x)

    site = sites(model)[""]
    assert measure.distance(site, moments).max() < 1e-3
    model.running_var[1] *= 4
    torch.testing.assert_close(measure.distance(site, moments)[1].item(), 0.6931, rtol=1e-2, atol=0)
