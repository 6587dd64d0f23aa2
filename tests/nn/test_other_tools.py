"""What other people's tools do to our layers: find them, update them, wrap them, or replace them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.processes import Processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

import evenly


def test_update_bn_sees_our_layers() -> None:
    """torch's update_bn resets them and averages cumulatively, for which it sets momentum at run time."""
    model = nn.Sequential(nn.Linear(3, 4), evenly.BatchNorm1d(4))
    batches = [torch.randn(8, 3) for _ in range(3)]

    update_bn(batches, model)

    means = torch.stack([model[0](b).mean(0) for b in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    assert model[1].momentum == 0.1


def test_convert_sync_batchnorm_drops_the_activation() -> None:
    """torch's converter rebuilds our layer as its own, silently without activation; SyncBatchNorm of ours keeps it."""
    layer = evenly.BatchNorm2d(3, activation="relu")

    replaced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))[0]

    assert type(replaced) is nn.SyncBatchNorm
    assert not hasattr(replaced, "activation")
    assert replaced.weight is layer.weight
    assert evenly.SyncBatchNorm(3, activation="relu").activation == "relu"


def test_timm_norm_act_reads_timms_arguments() -> None:
    """Names, classes, parameters; what cannot be fused is refused with the way out."""
    assert evenly.timm_norm_act(4, act_layer=nn.ReLU6).activation == "relu6"
    assert evenly.timm_norm_act(4, act_layer="identity").activation is None
    assert evenly.timm_norm_act(4, apply_act=False).activation is None
    assert evenly.timm_norm_act(4, act_layer="swish").activation == "silu"
    leaky = evenly.timm_norm_act(4, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.2, "inplace": True})
    assert (leaky.activation, leaky.activation_args) == ("leaky_relu", (0.2,))
    with pytest.raises(ValueError, match="apply_act=False"):
        evenly.timm_norm_act(4, act_layer=nn.Hardswish)
    with pytest.raises(ValueError, match="does not tell a function"):
        evenly.timm_norm_act(4)
    with pytest.raises(ValueError, match="drop layer"):
        evenly.timm_norm_act(4, act_layer="relu", drop_layer=nn.Dropout)


def _train_in_parallel(rank: int) -> list[torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), evenly.BatchNorm1d(4, activation="relu"), nn.Linear(4, 1))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(8, 3, generator=generator)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()] + [model[1].num_batches_tracked]


def test_distributed_data_parallel() -> None:
    """Two processes over gloo train one model: parameters stay equal, and each batch counts once."""
    with Processes(2) as processes:
        first, second = processes.run(_train_in_parallel)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert int(first[-1]) == 3


def test_safe_loading(tmp_path: Path) -> None:
    """A state_dict of ours loads with weights_only=True."""
    torch.save(evenly.BatchNorm2d(3).state_dict(), tmp_path / "weights.pt")

    assert evenly.BatchNorm2d(3).load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
