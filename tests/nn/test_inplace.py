"""`inplace=True`: the output is saved in place of the input wherever that is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evenly


def _saved(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and the tensors of its size that backward keeps."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    return y, [t for t in kept if t.numel() == x.numel()]


@pytest.mark.parametrize("activation", [None, "leaky_relu", "elu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_only_the_output_is_saved_and_gradients_agree(activation: str | None, channels_last: bool) -> None:
    """The input may go, and gradients are those of the layer that keeps it."""
    x = torch.randn(8, 4, 5, 5) * 3 + 100
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    dy = torch.randn(8, 4, 5, 5)
    gradients = []
    for inplace in (False, True):
        torch.manual_seed(1)
        layer = evenly.BatchNorm2d(4, activation=activation, inplace=inplace)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias, std=0.1)
        y, kept = _saved(layer, x)
        assert [t.data_ptr() for t in kept] == [(y if inplace else x).data_ptr()]
        gradients.append(torch.autograd.grad(y, (x, layer.weight, layer.bias), dy))

    for kept_input, restored in zip(*gradients, strict=True):
        scale = kept_input.abs().max()
        torch.testing.assert_close(restored / scale, kept_input / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1e-9, -1e-3])
def test_a_weight_that_is_small_beside_its_bias_keeps_the_input(weight: float) -> None:
    """Where the output could not give the input back, the layer saves the input, and is exact."""
    layer = evenly.BatchNorm1d(2, inplace=True, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[1] = weight
        layer.bias.fill_(0.5)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    _, kept = _saved(layer, x)

    assert [t.data_ptr() for t in kept] == [x.data_ptr()]
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("extra", ["relu", "half", "residual", "mask"])
def test_what_cannot_be_restored_keeps_the_input(extra: str) -> None:
    """An activation without inverse, half precision, a residual and a mask work as if not asked."""
    layer = evenly.BatchNorm1d(3, inplace=True, activation="relu" if extra == "relu" else "elu")
    x = torch.randn(6, 3, dtype=torch.bfloat16 if extra == "half" else torch.float32, requires_grad=True)
    options = {"residual": {"residual": x}, "mask": {"mask": torch.ones(6)}}.get(extra, {})
    with torch.no_grad():
        plain = evenly.BatchNorm1d(3, activation=layer.activation)(x, **options)

    y = layer(x, **options)
    y.sum().backward()

    torch.testing.assert_close(y, plain)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_second_derivatives_are_refused_clearly() -> None:
    """Without the input there is no second derivative; the error says what to do."""
    x = torch.randn(6, 3, requires_grad=True)
    y = evenly.BatchNorm1d(3, inplace=True)(x).square().sum()

    with pytest.raises(RuntimeError, match="inplace=False"):
        torch.autograd.grad(y, x, create_graph=True)


@pytest.mark.parametrize(("activation", "kept"), [(None, 0), ("relu", 1), ("leaky_relu", 1), ("silu", 1)])
def test_frozen_layers_save_no_input(activation: str | None, kept: int) -> None:
    """With fixed statistics and weights nothing, or the output that is alive anyway, is saved."""
    layer = evenly.BatchNorm1d(3, activation=activation).eval().requires_grad_(False)
    x = torch.randn(6, 3, requires_grad=True)

    y, saved = _saved(layer, x)
    y.sum().backward()

    assert len(saved) == kept
    if activation in ("relu", "leaky_relu"):
        assert saved[0].data_ptr() == y.data_ptr()
