"""Running statistics: torch's where torch is right, and whole where real training breaks torch's."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenly


def _mixed_batches(number: int = 100, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Batches of many sizes, places, layouts, means and spreads, some of them empty."""
    batches = []
    for k in range(number):
        shape = (2 + k % 7, 5, 1 + k % 4, 1 + k % 3) if k % 10 else (0, 5, 4, 4)
        x = torch.randn(shape, dtype=dtype) * (1 + k % 5) + k % 3
        batches.append(x.contiguous(memory_format=torch.channels_last) if k % 2 else x)
    return batches


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_equal_torchs_after_100_mixed_batches(momentum: float | None) -> None:
    """To float32 rounding in float32, and to 1e-12 of the definition in float64."""
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        torchs = nn.BatchNorm2d(5, momentum=momentum, dtype=dtype)
        ours = evenly.BatchNorm2d(5, momentum=momentum, dtype=dtype)
        with evenly.use_backend("reference"):
            reference = evenly.BatchNorm2d(5, momentum=momentum, dtype=dtype)
        for x in _mixed_batches(dtype=dtype):
            if x.numel():  # torch counts an empty batch, which says nothing; ours does not
                torchs(x)
            ours(x)
            with evenly.use_backend("reference"):
                reference(x)

        assert int(ours.num_batches_tracked) == int(torchs.num_batches_tracked) == 90
        for name in ("running_mean", "running_var"):
            for other in (torchs, reference):
                torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=tolerance, atol=tolerance)


def test_averages_by_their_definitions() -> None:
    """ema, debiased and cumulative averages, of unbiased or biased variances."""
    batches = [torch.randn(4, 2, dtype=torch.float64) + k for k in range(5)]
    means, variances = torch.stack([b.mean(0) for b in batches]), torch.stack([b.var(0) for b in batches])
    ages = torch.arange(4, -1, -1, dtype=torch.float64)
    weights = 0.3 * 0.7**ages

    cumulative = evenly.BatchNorm1d(2, momentum=None, dtype=torch.float64)
    debiased = evenly.BatchNorm1d(2, momentum=0.3, average="debiased", unbiased=False, dtype=torch.float64)
    for b in batches:
        cumulative(b)
        debiased(b)

    torch.testing.assert_close(cumulative.running_mean, means.mean(0))
    torch.testing.assert_close(cumulative.running_var, variances.mean(0))
    torch.testing.assert_close(debiased.running_mean, weights @ means / weights.sum())
    torch.testing.assert_close(debiased.running_var, weights @ (variances * 3 / 4) / weights.sum())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_batch_is_left_out_and_counted(bad: float) -> None:
    """One bad value poisons torch's statistics for good (pytorch#88474); ours skip the batch and say so."""
    torchs, ours = nn.BatchNorm1d(3), evenly.BatchNorm1d(3)
    x = torch.randn(8, 3)
    poisoned = x.clone()
    poisoned[0, 1] = bad
    for layer in (torchs, ours):
        layer(x)
        before = copy.deepcopy(layer.state_dict())
        layer(poisoned)
        layer.eval()

    assert not torch.isfinite(torchs(x)).all()
    for name, value in before.items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert int(ours.skipped_batches) == 1
    assert "skipped_batches" not in ours.state_dict()


def test_a_nonfinite_batch_can_be_let_in() -> None:
    """`nonfinite="write"` does as torch does."""
    layer = evenly.BatchNorm1d(1, nonfinite="write")

    layer(torch.tensor([[1.0], [math.nan]]))

    assert torch.isnan(layer.running_mean).all()
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_float32_statistics(dtype: torch.dtype) -> None:
    """`model.bfloat16()` spoils torch's running mean of 3 for good; ours arrives."""
    torchs, ours = nn.BatchNorm1d(1, momentum=0.01).to(dtype), evenly.BatchNorm1d(1, momentum=0.01).to(dtype)
    for _ in range(1000):
        x = (torch.randn(64, 1) + 3).to(dtype)
        torchs(x)
        y = ours(x)

    assert y.dtype == ours.weight.dtype == dtype
    assert ours.running_mean.dtype == torch.float32
    assert abs(ours.running_mean.item() - 3) < 0.03
    if dtype == torch.bfloat16:
        assert torchs.running_mean.item() < 2.5


@pytest.mark.parametrize("layer", [evenly.BatchNorm2d(3), evenly.InstanceNorm2d(3, track_running_stats=True)])
def test_types_follow_the_module_but_not_into_half(layer: nn.Module) -> None:
    """`.half()` keeps values and type of the statistics; `.double()` moves them; parameters always follow."""
    layer = copy.deepcopy(layer)
    layer(torch.randn(4, 3, 5, 5) + 1000.1)
    mean = layer.running_mean.clone()

    layer.half()
    assert layer.running_mean.dtype == torch.float32
    assert torch.equal(layer.running_mean, mean)
    assert layer.double().running_mean.dtype == torch.float64
    assert layer.to(torch.bfloat16).running_var.dtype == torch.float32


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_checkpointing_counts_a_batch_once(use_reentrant: bool, kind: str) -> None:
    """Recomputing updates torch's statistics a second time (pytorch#96136); ours once."""

    def made(library: object) -> nn.Module:
        if kind == "batch":
            return library.BatchNorm1d(3)  # type: ignore[attr-defined]
        return library.InstanceNorm1d(3, affine=True, track_running_stats=True)  # type: ignore[attr-defined]

    x = torch.randn(8, 3, 4, requires_grad=True)
    plain, torchs, ours = made(evenly), made(nn), made(evenly)
    plain(x)
    for layer in (torchs, ours):
        checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()

    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    if kind == "batch":
        assert not torch.allclose(torchs.running_mean, plain.running_mean)
        assert int(ours.num_batches_tracked) == 1
        assert int(torchs.num_batches_tracked) == 2


def test_a_forward_inside_a_gradient_hook_counts() -> None:
    """A hook runs inside the engine, as a recompute does, but its forward is a batch of its own."""
    layer = evenly.BatchNorm1d(3)
    x = torch.randn(8, 3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: layer(torch.randn(8, 3)).detach().mean() * 0 + grad)

    y.sum().backward()

    assert int(layer.num_batches_tracked) == 1


def test_empty_and_all_masked_batches_are_harmless() -> None:
    """They leave statistics and counter alone, and the output is finite; torch counts the empty one."""
    torchs, ours = nn.BatchNorm2d(3), evenly.BatchNorm2d(3)
    before = copy.deepcopy(ours.state_dict())

    assert ours(torch.randn(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    masked = ours(torch.randn(2, 3, 4, 4), mask=torch.zeros(2, 4, 4, dtype=torch.bool))
    torchs(torch.randn(0, 3, 4, 4))

    assert torch.isfinite(masked).all()
    for name, value in before.items():
        assert torch.equal(ours.state_dict()[name], value)
    assert int(torchs.num_batches_tracked) == 1


def test_a_frozen_layer_cannot_be_thawed_by_train() -> None:
    """Its statistics are used and left alone under `train()`, while weight and bias learn."""
    layer = evenly.BatchNorm1d(3)
    layer(torch.randn(8, 3) * 2 + 1)
    x = torch.randn(8, 3)
    expected = copy.deepcopy(layer).eval()(x)
    layer.frozen = True

    y = layer.train()(x)
    y.sum().backward()

    torch.testing.assert_close(y, expected)
    assert int(layer.num_batches_tracked) == 1
    assert layer.weight.grad is not None
    assert "frozen=True" in repr(layer)
    assert pickle.loads(pickle.dumps(layer)).frozen


@pytest.mark.parametrize("ghosts", [1, 2])
def test_accumulated_micro_batches_enter_as_one_batch(ghosts: int) -> None:
    """The pooled statistics are those of the micro-batches' samples together, whatever their sizes."""
    pieces = [torch.randn(n, 3, 4, dtype=torch.float64) * n + n for n in (2, 5, 4)]
    whole = evenly.BatchNorm1d(3, dtype=torch.float64)
    pooled = evenly.BatchNorm1d(3, accumulate=3, ghosts=ghosts, dtype=torch.float64)
    for _ in range(2):
        whole(torch.cat(pieces))
        for piece in pieces:
            pooled(piece)

    assert int(pooled.num_batches_tracked) == 2
    torch.testing.assert_close(pooled.running_mean, whole.running_mean)
    torch.testing.assert_close(pooled.running_var, whole.running_var)
    assert set(pooled.state_dict()) == set(whole.state_dict())


def test_accumulation_leaves_bad_pieces_out_and_starts_anew_on_reset() -> None:
    """A piece with a NaN is skipped and counted, and still is one of the pieces waited for."""
    layer = evenly.BatchNorm1d(1, accumulate=2, momentum=1.0)
    x = torch.tensor([[1.0], [5.0]])

    layer(x * math.nan)
    layer(x)
    assert (layer.running_mean.item(), layer.running_var.item()) == (3.0, 8.0)
    assert (int(layer.skipped_batches), int(layer.num_batches_tracked)) == (1, 1)

    layer(x)
    layer.reset_running_stats()
    layer(x)
    assert int(layer.num_batches_tracked) == 0
    assert int(layer.skipped_batches) == 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("second", [False, True])
def test_a_batch_between_forward_and_backward_changes_no_gradient(backend: str, second: bool) -> None:
    """Statistics that were given are those of the forward, also when a batch has been entered since."""
    layer = evenly.BatchNorm2d(3).double()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)

    def gradients(*, between: bool) -> list[Tensor]:
        layer.reset_running_stats()
        layer.eval()
        y = layer(x).square().sum()
        if between:
            layer.train()(x.detach() + 7)
        found = torch.autograd.grad(y, [x, layer.weight, layer.bias], create_graph=second)
        if second:
            found = (*found, *torch.autograd.grad(found[1].sum(), [x]))
        return [t.detach() for t in found]

    with evenly.use_backend(backend):
        for expected, found in zip(gradients(between=False), gradients(between=True), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_buffers_of_another_length_are_refused_before_anything_is_written() -> None:
    """A variance that does not fit the channels raises, in training and in evaluation, and the mean stays."""
    for make in (evenly.BatchNorm2d, lambda n: evenly.InstanceNorm2d(n, track_running_stats=True)):
        for training in (True, False):
            layer = make(4).train(training)
            layer.running_var = torch.ones(2)

            with pytest.raises(ValueError, match="running_var has shape"):
                layer(torch.randn(4, 4, 5, 5) + 3)
            assert torch.equal(layer.running_mean, torch.zeros(4))
