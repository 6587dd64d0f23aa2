"""Running statistics of several processes made one, and recalibrated together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.processes import Processes
from torch import Tensor, nn

import evenly


@pytest.fixture(scope="module")
def three() -> Iterator[Processes]:
    """Three processes, for the whole module."""
    with Processes(3) as group:
        yield group


def model_of() -> nn.Sequential:
    """Two batch norms with a layer between, in float64; the first averages all batches alike."""
    torch.manual_seed(0)
    norms = nn.BatchNorm1d(2, momentum=None), evenly.BatchNorm1d(3)
    return nn.Sequential(norms[0], nn.Linear(2, 3), norms[1]).double()


def batches(rank: int, number: int, size: int = 4) -> list[Tensor]:
    """Batches whose mean depends on the process."""
    generator = torch.Generator().manual_seed(rank)
    return [5 * rank + torch.randn(size, 2, generator=generator).double() for _ in range(number)]


def trained(rank: int, numbers: tuple[int, ...]) -> nn.Sequential:
    """The model after this process's batches."""
    model = model_of()
    for x in batches(rank, numbers[rank]):
        model(x)
    return model


def pooled(rank: int, numbers: tuple[int, ...]) -> dict[str, Tensor]:
    """The buffers after pooling."""
    return dict(evenly.pool_statistics(trained(rank, numbers)).named_buffers())


def test_statistics_are_pooled_by_count_with_the_spread_between(three: Processes) -> None:
    """All processes get the same bits: the moments of a mixture, weighed by batches seen."""
    numbers = (6, 3, 0)
    found = three.run(pooled, numbers)

    parts = [trained(rank, numbers) for rank in range(3)]
    for name in ("0", "2"):
        norms = [part.get_submodule(name) for part in parts]
        n = torch.tensor([float(norm.num_batches_tracked) for norm in norms]).double()[:, None] / 9
        means, variances = (torch.stack([getattr(norm, f"running_{s}") for norm in norms]) for s in ("mean", "var"))
        mean = (n * means).sum(0)
        var = (n * (variances + means**2)).sum(0) - mean**2
        for buffers in found:
            torch.testing.assert_close(buffers[f"{name}.running_mean"], mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(buffers[f"{name}.running_var"], var, rtol=1e-11, atol=1e-11)
            assert torch.equal(buffers[f"{name}.running_var"], found[0][f"{name}.running_var"])
            assert buffers[f"{name}.num_batches_tracked"] == 6
    # Means 5 apart: the mean of the variances misses what lies between the processes.
    assert float(found[0]["0.running_var"][0]) > 4


def untouched(rank: int) -> dict[str, Tensor]:
    """The buffers of a model that saw nothing."""
    return dict(evenly.pool_statistics(model_of()).named_buffers())


def test_without_batches_nothing_changes(three: Processes) -> None:
    """Layers that saw no batch on any process keep zero mean, unit variance and their counter."""
    for buffers in three.run(untouched):
        assert all(torch.equal(buffer, dict(model_of().named_buffers())[name]) for name, buffer in buffers.items())


def of_two_sizes(rank: int) -> tuple[str, float]:
    """The error where process 2 has another model, and the mean after it."""
    layer = nn.BatchNorm1d(3 if rank == 2 else 2)
    layer(torch.ones(2, layer.num_features))
    with pytest.raises(ValueError, match="differ") as caught:
        evenly.pool_statistics(nn.Sequential(layer))
    return str(caught.value), float(layer.running_mean[0])


def test_different_models_are_refused(three: Processes) -> None:
    """Every process names the layer and the process, and none is changed."""
    for error, mean in three.run(of_two_sizes):
        assert "0 has 2 channels with running statistics on process 0, 3 on process 2" in error
        assert mean == pytest.approx(0.1)


def test_alone_nothing_changes() -> None:
    """Without torch.distributed the model comes back as it was."""
    layer = nn.BatchNorm1d(2)
    layer(torch.randn(4, 2))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    assert evenly.pool_statistics(layer) is layer
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def recalibrated(rank: int) -> dict[str, Tensor]:
    """The buffers after recalibrating over all processes' batches."""
    return dict(evenly.recalibrate(model_of(), batches(rank, 1 + rank, size=3 + rank)).named_buffers())


def test_recalibration_pools_all_processes(three: Processes) -> None:
    """The first layer gets the population statistics of all processes' data, the same bits everywhere."""
    found = three.run(recalibrated)

    data = torch.cat([x for rank in range(3) for x in batches(rank, 1 + rank, size=3 + rank)])
    for buffers in found:
        torch.testing.assert_close(buffers["0.running_mean"], data.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(buffers["0.running_var"], data.var(0), rtol=1e-12, atol=1e-12)
        assert buffers["0.num_batches_tracked"] == 6
        assert all(torch.equal(buffer, found[0][name]) for name, buffer in buffers.items())


def recalibrated_without_data(rank: int) -> str:
    """The error where process 1 has no batches; the model stays as it was."""
    model = model_of()
    with pytest.raises((ValueError, RuntimeError)) as caught:
        evenly.recalibrate(model, [] if rank == 1 else batches(rank, 2))
    assert all(torch.equal(b, dict(model_of().named_buffers())[name]) for name, b in model.named_buffers())
    return str(caught.value)


def test_a_failure_on_one_process_is_an_error_on_all(three: Processes) -> None:
    """Nobody waits for a process that failed; the others say which one and why, and change nothing."""
    first, second, third = three.run(recalibrated_without_data)

    assert second.startswith("batches is empty")
    for error in (first, third):
        assert error.startswith("process 1 failed, so no process can go on; there it was ValueError: batches is empty")
