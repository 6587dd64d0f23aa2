"""Plain torch for the time being."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import evenly
from evenly.tools.fuse import fused_from

X = torch.randn(4, 3, 8, 8)


def _model() -> nn.Sequential:
    return evenly.convert(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4)), fuse=True
    )


def _identities(model: nn.Module) -> list[Any]:
    tensors = [(name, id(t)) for name, t in (*model.named_parameters(), *model.named_buffers())]
    return [*tensors, *((name, id(m), list(m._forward_hooks)) for name, m in model.named_modules())]


def test_everything_is_torchs_inside_and_ours_after() -> None:
    """Classes are swapped and swapped back; modules, tensors and hooks are the same objects throughout."""
    model = _model()
    model[1].register_forward_hook(lambda m, args, y: None)
    before, kinds = _identities(model), [type(m) for m in model.modules()]
    expected = copy.deepcopy(model)(X)

    with evenly.reverted(model) as plain:
        assert plain is model
        assert [type(m) for m in model.modules()] == [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.GroupNorm]
        assert _identities(model) == before
        torch.testing.assert_close(model(X), expected)

    assert [type(m) for m in model.modules()] == kinds
    assert _identities(model) == before
    assert fused_from(model) is nn.Sequential
    assert int(model[1].num_batches_tracked) == 1


def test_it_nests_and_survives_exceptions() -> None:
    """The inner one has nothing to do; an error inside restores all the same."""
    model = _model()
    with pytest.raises(KeyError), evenly.reverted(model):  # noqa: PT012
        with evenly.reverted(model):
            assert type(model[1]) is nn.BatchNorm2d
        assert type(model[1]) is nn.BatchNorm2d
        raise KeyError

    assert type(model[1]) is evenly.BatchNorm2d
    assert fused_from(model) is nn.Sequential


class Own(evenly.BatchNorm2d):
    """Somebody's subclass of ours."""


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: evenly.BatchNorm2d(4, activation="relu"), "activation='relu'"),
        (lambda: evenly.BatchNorm2d(4, ghosts=2), "ghosts=2"),
        (lambda: evenly.freeze(evenly.BatchNorm2d(4)), "frozen=True"),
        (lambda: evenly.BatchNorm(4), "any rank"),
        (lambda: evenly.BatchNorm2d(None), "subclass, or lazy"),
        (lambda: Own(4), "subclass, or lazy"),
    ],
)
def test_what_has_no_counterpart_is_refused_first(layer: Any, why: str) -> None:
    """Nothing has changed then."""
    model = nn.Sequential(evenly.BatchNorm2d(3), layer())
    with pytest.raises(ValueError, match=rf"1 \(.*{why}"), evenly.reverted(model):
        pass
    assert type(model[0]) is evenly.BatchNorm2d


@pytest.mark.parametrize("moves", [False, True])
def test_half_precision(moves: bool) -> None:
    """Statistics take the weight's type inside; unchanged ones come back with every bit."""
    layer = evenly.BatchNorm2d(3)
    layer(X * 1.001)
    layer.bfloat16()
    mean, buffer = layer.running_mean.clone(), layer.running_mean
    with evenly.reverted(layer):
        assert layer.running_mean.dtype is torch.bfloat16
        layer.train(moves)(X.bfloat16())

    assert layer.running_mean is buffer
    assert layer.running_mean.dtype is torch.float32
    assert torch.equal(layer.running_mean, mean) is not moves


def test_a_tool_that_replaces_a_layer_keeps_its_replacement() -> None:
    """What somebody put in place of a norm is not ours to change."""
    model = nn.Sequential(evenly.BatchNorm2d(3))
    with evenly.reverted(model):
        model[0] = nn.SyncBatchNorm.convert_sync_batchnorm(model[0])
    assert type(model[0]) is nn.SyncBatchNorm
