"""What other people's tools do to our layers: find them, update them, wrap them, or replace them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import Processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.swa_utils import update_bn

import evenly

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # both are written in TorchScript
    from torch.fx.experimental import optimization
    from torch.utils import mkldnn


def test_update_bn_sees_our_layers() -> None:
    """torch's update_bn resets them and averages cumulatively, for which it sets momentum at run time."""
    model = nn.Sequential(nn.Linear(3, 4), evenly.BatchNorm1d(4))
    batches = [torch.randn(8, 3) for _ in range(3)]

    update_bn(batches, model)

    means = torch.stack([model[0](b).mean(0) for b in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("extra", [{"activation": "relu"}, {"ghosts": 2}, {"average": "debiased"}, {"single": "skip"}])
def test_convert_sync_batchnorm_refuses_what_it_would_drop(extra: dict[str, Any]) -> None:
    """torch's converter rebuilds a layer of ours as its own; where that would lose something it says so."""
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(evenly.BatchNorm2d(3)))[0]
    assert type(plain) is nn.SyncBatchNorm

    with pytest.raises(RuntimeError, match=f"would drop {next(iter(extra))}=.*evenly.convert"):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(evenly.BatchNorm2d(3, **extra)))
    assert evenly.SyncBatchNorm(3, activation="relu").activation == "relu"


def test_convert_sync_batchnorm_of_ours() -> None:
    """By torch's name and arguments, in place, with every extra kept; ghosts are refused before anything changes."""
    model = nn.Sequential(nn.BatchNorm1d(4), evenly.BatchNorm2d(4, activation="relu"), evenly.freeze(nn.BatchNorm1d(4)))
    weight, keys = model[0].weight, list(model.state_dict())

    assert evenly.SyncBatchNorm.convert_sync_batchnorm(model, "a group") is model

    assert [type(m) for m in model] == [evenly.SyncBatchNorm] * 3
    assert [m.process_group for m in model] == ["a group"] * 3
    assert (model[1].activation, model[2].frozen) == ("relu", True)
    assert model[0].weight is weight
    assert list(model.state_dict()) == keys
    mixed = nn.Sequential(nn.BatchNorm1d(4), evenly.BatchNorm1d(4, ghosts=2))
    with pytest.raises(ValueError, match="ghost"):
        evenly.SyncBatchNorm.convert_sync_batchnorm(mixed)
    assert type(mixed[0]) is nn.BatchNorm1d


def _pair(**extra: Any) -> tuple[nn.Sequential, torch.Tensor]:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), evenly.BatchNorm2d(4, **extra)), torch.randn(2, 3, 8, 8)
    model(x)
    return model.eval(), x


def test_fuse_conv_bn_eval_does_not_lose_the_activation() -> None:
    """torch's folding takes a plain layer of ours, and refuses one with an activation of its own."""
    model, x = _pair()
    torch.testing.assert_close(fuse_conv_bn_eval(*model)(x), model(x), rtol=1e-4, atol=1e-5)

    model, x = _pair(activation="relu")
    with pytest.raises(RuntimeError, match="fuse_conv_bn_eval would drop activation='relu'"):
        fuse_conv_bn_eval(*model)


def test_fuse_linear_bn_eval_does_not_lose_the_activation() -> None:
    """The same for dense layers."""
    with pytest.raises(RuntimeError, match="fuse_linear_bn_eval would drop activation='relu'"):
        fuse_linear_bn_eval(nn.Linear(3, 4).eval(), evenly.BatchNorm1d(4, activation="relu").eval())


def test_to_mkldnn_does_not_lose_the_activation() -> None:
    """torch's converter takes a plain layer of ours (frozen or not), and refuses one with an activation."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without mkldnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model, x = _pair()
        y = mkldnn.to_mkldnn(copy.deepcopy(evenly.freeze(model)))(x.to_mkldnn()).to_dense()
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match="mkldnn would drop activation='relu'"):
            mkldnn.to_mkldnn(_pair(activation="relu")[0])


def test_quantization_and_fx_fusion_leave_our_layers() -> None:
    """Both look up exact types: one says so, the other leaves the norm as it is; reverted, both fold."""
    model, x = _pair()
    y = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        with pytest.raises(AssertionError, match="did not find fuser method"):
            torch.ao.quantization.fuse_modules(model, ["0", "1"])
        assert any(type(m) is evenly.BatchNorm2d for m in optimization.fuse(model).modules())
        with evenly.reverted(model):
            folded = optimization.fuse(model), torch.ao.quantization.fuse_modules(model, ["0", "1"])

    for one in folded:
        assert not any(isinstance(m, nn.BatchNorm2d) for m in one.modules())
        torch.testing.assert_close(one(x), y, rtol=1e-4, atol=1e-5)
    assert type(model[1]) is evenly.BatchNorm2d


def test_folding_a_fused_block_keeps_its_activation() -> None:
    """`evenly.convert(fuse=True)` leaves the activation where it was: a folded norm is followed by it."""
    model = evenly.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), fuse=True)
    x = torch.randn(2, 3, 8, 8)
    y = model(x)

    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()

    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    assert (y >= 0).all()


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
