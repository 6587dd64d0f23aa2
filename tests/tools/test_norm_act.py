"""timm's norm with an activation; its class is written here as timm has it, for timm need not be installed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import fx, nn

import evenly
from evenly.tools.norm_act import BatchNormAct2d

SOURCE = """
from torch import nn
class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, channels, act=None, drop=None):
        super().__init__(channels)
        self.drop, self.act = drop or nn.Identity(), act or nn.ReLU()
    def forward(self, x):
        return self.act(self.drop(super().forward(x)))
"""


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class in a module of timm's name."""
    module = ModuleType("timm.layers.norm_act")
    exec(SOURCE, vars(module))
    monkeypatch.setitem(sys.modules, "timm.layers.norm_act", module)
    return vars(module)["BatchNormAct2d"]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.Identity()])
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_timms_computes(theirs: Any, act: nn.Module, training: bool) -> None:
    """With the activations that we know and with others; back again the class is timm's."""
    plain, x = theirs(4, act), torch.randn(3, 4, 5, 5)
    ours = evenly.convert(copy.deepcopy(plain))

    assert type(ours) is BatchNormAct2d
    torch.testing.assert_close(ours.train(training)(x), plain.train(training)(x))
    torch.testing.assert_close(ours.running_var, plain.running_var)
    assert fx.symbolic_trace(nn.Sequential(ours))(x).shape == x.shape
    with evenly.reverted(ours):
        assert type(ours) is theirs
    assert type(evenly.revert(ours)) is theirs


def test_who_listens_to_the_activation_is_heard(theirs: Any) -> None:
    """Then it is called as a module."""
    ours, seen = evenly.convert(theirs(4)), []
    ours.act.register_forward_hook(lambda m, args, y: seen.append(float(args[0].detach().min())))
    ours(torch.randn(3, 4, 5, 5))

    assert seen[0] < 0


def test_it_freezes_and_thaws(theirs: Any) -> None:
    """As torch's do, without a hook."""
    layer = evenly.freeze(theirs(4)).train()
    layer(torch.randn(3, 4, 5, 5))

    assert int(layer.num_batches_tracked) == 0
    assert not layer._forward_pre_hooks
    assert type(evenly.unfreeze(layer)) is theirs


def test_another_kind_of_norm_is_refused_by_name(theirs: Any) -> None:
    """Its activation would have nowhere to go."""
    with pytest.warns(UserWarning, match="BatchNormAct2d keeps its kind"):
        evenly.convert(theirs(4), norm="group:2")
