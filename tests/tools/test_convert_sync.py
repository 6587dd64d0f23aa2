"""Statistics shared by processes by converting a model, and back."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from benchmarks import networks
from tests.processes import Processes
from torch import Tensor, nn

import evenly


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes, for the whole module."""
    with Processes(2) as group:
        yield group


def network() -> nn.Module:
    """A small ResNet in float64."""
    torch.manual_seed(0)
    return networks.resnet18(4, 3).double()


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Buffers and gradients after one training step."""
    model(x).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, **{name: b.clone() for name, b in model.named_buffers() if "skipped" not in name}}


def inputs() -> Tensor:
    """Five images."""
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def converted_step(rank: int) -> tuple[dict[str, Tensor], list[str], dict[str, Tensor]]:
    """A step of the converted network on this process's part; the reverted network's classes and evaluation."""
    model = evenly.convert(network(), norm="sync")
    found = step(model, inputs().split((2, 3))[rank])
    reverted = evenly.revert(model)
    classes = sorted({type(m).__module__ for m in reverted.modules()})
    return found, classes, {"y": reverted.eval()(inputs()).detach()}


def test_a_converted_network_trains_as_one_process(two: Processes) -> None:
    """Running statistics are the whole batch's, gradients add up to it; reverted, it is torch.nn's again."""
    (first, classes, y0), (second, _, y1) = two.run(converted_step)

    model = network()
    whole = step(model, inputs())
    for name, expected in whole.items():
        buffer = "running" in name or "batches" in name
        found = first[name] if buffer else first[name] + second[name]
        atol = 1e-9 * float(expected.abs().max()) + 1e-12
        torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        assert not buffer or torch.equal(first[name], second[name])
    assert not any(name.startswith("evenly") for name in classes)
    for y in (y0["y"], y1["y"]):
        torch.testing.assert_close(y, model.eval()(inputs()).detach(), rtol=1e-8, atol=1e-8)


def test_nothing_is_lost() -> None:
    """State, hooks, sharing, mode and class survive the way to shared statistics and back."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.ReLU()).eval()
    model.append(model[1])
    calls: list[str] = []
    model[1].register_forward_hook(lambda *_: calls.append("hook"))
    model[1].weight.requires_grad_(False)
    before, state, keys = list(model.parameters()), copy.deepcopy(model.state_dict()), set(vars(model[1]))

    shared = evenly.convert(model, norm="sync")
    assert shared[1].sync
    assert shared[1] is shared[3]
    assert type(shared[1]) is evenly.BatchNorm1d
    evenly.revert(shared)

    assert type(model[1]) is nn.BatchNorm1d
    assert model[1] is model[3]
    assert set(vars(model[1])) == keys
    assert not model[1].training
    assert not model[1].weight.requires_grad
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    model(torch.randn(2, 3))
    assert calls == ["hook", "hook"]


def test_torchs_own_sync_layers_come_along() -> None:
    """torch.nn.SyncBatchNorm becomes ours and comes back, its process group kept; ours loads its state."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "a group")
    keys = set(vars(model[1]))

    evenly.convert(model)
    assert type(model[1]) is evenly.SyncBatchNorm
    assert (model[1].sync, model[1].process_group) == (True, "a group")
    y = model(torch.randn(2, 1, 6, 6))  # alone, nothing is asked of the group
    evenly.revert(model)

    assert y.shape == (2, 2, 4, 4)
    assert type(model[1]) is nn.SyncBatchNorm
    assert model[1].process_group == "a group"
    assert set(vars(model[1])) == keys


def test_between_kinds() -> None:
    """Ghosts become shared statistics and shared ones ghosts, never both; revert finds the first class."""
    model = nn.Sequential(nn.BatchNorm1d(4))
    evenly.convert(model, norm="ghost:2")
    evenly.convert(model, norm="sync")
    assert (model[0].ghosts, model[0].sync) == (1, True)
    evenly.convert(model, norm="ghost:2")
    assert (model[0].ghosts, model[0].sync) == (2, False)

    assert type(evenly.revert(model)[0]) is nn.BatchNorm1d


def test_a_converted_model_can_be_copied_and_saved() -> None:
    """deepcopy and a pickled model keep the kind, and the way back."""
    model = evenly.convert(nn.Sequential(nn.BatchNorm1d(4)), norm="sync")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)

    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert copied[0].sync
        assert type(evenly.revert(copied)[0]) is nn.BatchNorm1d


def torchs_converter(rank: int) -> tuple[bool, str, bool]:
    """Whether torch's own converter refuses an activation, what it makes of a plain layer, and whether that runs."""
    try:
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(evenly.BatchNorm1d(3, activation="relu")))
        keeps = False
    except RuntimeError:
        keeps = True
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(evenly.BatchNorm1d(3)))
    refuses = False
    try:
        model(torch.randn(4, 3))
    except ValueError:
        refuses = True
    return keeps, type(model[0]).__module__, refuses


def test_torchs_converter_keeps_its_hands_off_the_activation_and_refuses_the_cpu(two: Processes) -> None:
    """What it does to our layers: plain ones become torch.nn's, for GPUs only (torch #78078); others raise."""
    assert two.run(torchs_converter) == [(True, "torch.nn.modules.batchnorm", True)] * 2
