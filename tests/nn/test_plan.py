"""What is remembered of one call must not outlive what it was found from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import evenly
from evenly.nn import plan

LAYERS: dict[str, Callable[[], Any]] = {
    "batch": lambda: evenly.BatchNorm(6, activation="relu"),
    "group": lambda: evenly.GroupNorm(2, 6, activation="relu"),
    "instance": lambda: evenly.InstanceNorm2d(6, affine=True, activation="relu"),
    "layer": lambda: evenly.LayerNorm(5, activation="relu"),
    "rms": lambda: evenly.RMSNorm(5, activation="relu"),
}


def _input(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _outcome(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers."""
    x = x.detach().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y).cumsum(0))
    return [y.detach(), *gradients, *(b.clone() for b in layer.buffers())]


@pytest.mark.parametrize("name", LAYERS)
def test_a_second_call_finds_what_the_first_found(name: str) -> None:
    """With and without a remembered plan the results are the same bits."""
    x = _input(4, 6, 3, 5)
    plan._PLANS.clear()
    first = _outcome(LAYERS[name]().double(), x)
    kept = len(plan._PLANS)
    second = _outcome(LAYERS[name]().double(), x)

    assert kept == len(plan._PLANS) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_settings_may_change_between_calls(name: str) -> None:
    """A changed activation, epsilon or mode acts at once, on input of a known shape."""
    x = _input(4, 6, 3, 5)
    layer = LAYERS[name]().double()
    layer(x)
    layer.activation, layer.eps = "leaky_relu", 0.5
    fresh = LAYERS[name]().double()
    fresh(x)
    fresh.activation, fresh.eps = "leaky_relu", 0.5
    plan._PLANS.clear()
    expected = fresh(x)

    assert torch.equal(layer(x), expected)
    assert float(layer(x).detach().min()) < 0


def test_running_settings_may_change_between_calls() -> None:
    """Momentum, average and the rule for one value per channel act at once."""
    x, layer = _input(4, 6), evenly.BatchNorm(6).double()
    layer(x)
    layer.reset_running_stats()
    layer.momentum = 1.0
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=1e-12, atol=1e-12)
    layer.momentum, layer.average = 0.5, "debiased"
    layer.reset_running_stats()
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=1e-12, atol=1e-12)
    layer.single = "skip"
    assert not layer(_input(1, 6)).any()


def test_settings_without_a_hash_are_taken() -> None:
    """A list of arguments for the activation, set by hand, is as good as a tuple."""
    layer = evenly.BatchNorm(6, activation="leaky_relu").double()
    layer.activation_args = [0.5]
    fresh = evenly.BatchNorm(6, activation="leaky_relu", activation_args=(0.5,)).double()

    assert torch.equal(layer(_input(4, 6)), fresh(_input(4, 6)))


def test_memory_formats_of_one_shape_are_told_apart() -> None:
    """Channels first, channels last and a slice give one result."""
    layer = evenly.BatchNorm(6).double()
    x = _input(4, 6, 3, 5)
    wide = torch.zeros(4, 6, 3, 10, dtype=torch.float64)
    wide[..., ::2] = x
    outputs = [layer(t) for t in (x, x.contiguous(memory_format=torch.channels_last), wide[..., ::2])]

    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_wrong_input_is_refused_after_right_input() -> None:
    """And again when it comes a second time."""
    layer = evenly.BatchNorm(6).double()
    layer(_input(4, 6, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match="5 channels"):
            layer(_input(4, 5, 3))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(_input(1, 6))
        with pytest.raises(TypeError, match="floating point"):
            layer(_input(4, 6, 3).long())
        with pytest.raises(TypeError, match="sparse"):
            layer(_input(4, 6).to_sparse())
        with pytest.raises(TypeError, match="nested"):
            layer(torch.nested.nested_tensor([_input(4, 6), _input(3, 6)]))
        with pytest.raises(ValueError, match="residual"):
            layer(_input(4, 6, 3), residual=_input(4, 6, 2))
    layer.eps = 0.0
    with pytest.raises(ValueError, match="eps"):
        layer(_input(4, 6, 3))
    layer.eps, layer.weight = 1e-5, nn.Parameter(torch.ones(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="weight"):
        layer(_input(4, 6, 3))
    layer.weight = None
    torch.testing.assert_close(layer(_input(4, 6, 3)).mean((0, 2)), torch.zeros(6, dtype=torch.float64))


def test_only_so_many_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever new shapes do not fill the memory."""
    monkeypatch.setattr(plan, "_MOST", 3)
    layer = evenly.LayerNorm(5).double()
    for n in range(1, 20):
        layer(_input(n, 5))

    assert len(plan._PLANS) <= 3


def test_threads_share_plans() -> None:
    """Each of many threads, all with shapes of their own, gets what one alone would get."""
    plan._PLANS.clear()
    shapes = [(n % 7 + 2, 6, n % 3 + 1, 5) for n in range(42)]

    def run(shape: tuple[int, ...]) -> list[Tensor]:
        return _outcome(LAYERS["batch"]().double(), _input(*shape))

    alone = [run(shape) for shape in shapes]
    plan._PLANS.clear()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, shapes))

    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        """Twice the weight."""
        return 2 * weight


@pytest.mark.parametrize("name", LAYERS)
def test_a_parametrized_weight_is_the_one_used(name: str) -> None:
    """A weight that is computed is read where it is computed."""
    x = _input(4, 6, 3, 5)
    layer, scaled = LAYERS[name]().double(), LAYERS[name]().double()
    parametrize.register_parametrization(layer, "weight", _Doubled())
    with torch.no_grad():
        scaled.weight.mul_(2)

    assert torch.equal(layer(x), scaled(x))


def test_statistics_kept_outside_of_the_buffers_are_updated() -> None:
    """A buffer that somebody made a plain attribute is found."""
    layer = evenly.BatchNorm(6).double()
    mean = layer.running_mean
    del layer.running_mean
    object.__setattr__(layer, "running_mean", mean)
    layer(_input(4, 6, 3) + 10)

    assert float(mean.min()) > 0.5


def test_a_tensor_that_outlived_its_transform_is_normalized() -> None:
    """A tensor kept from inside torch.func.grad has no memory of its own; gradients still flow."""
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(2 * x)
        return x.sum()

    x = _input(4, 6)
    torch.func.grad(keep)(x)
    layer, other = LAYERS["batch"]().double(), LAYERS["batch"]().double()
    layer(kept[0]).sum().backward()
    other(2 * x).sum().backward()

    torch.testing.assert_close(layer.weight.grad, other.weight.grad)
    with torch.no_grad():
        torch.testing.assert_close(layer(kept[0]), other(2 * x))
