"""Biases before a norm: found by data flow, removed without changing a result."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from benchmarks import networks
from torch import Tensor, nn

import evenly


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """With biases and running statistics away from where they start."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.5)
    model.train()
    model(x)
    return model


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_the_network_computes_the_same_without_them(name: str) -> None:
    """Training output, its gradients and evaluation are unchanged; the last layer keeps its bias."""
    model = (networks.mlp(6, 8, 3) if name == "mlp" else networks.UNet(4)).double()
    x = torch.randn((8, 6) if name == "mlp" else (2, 3, 16, 16), dtype=torch.float64)
    trained(model, x)
    bare = evenly.convert(copy.deepcopy(model), drop_bias=True)

    gone = set(model.state_dict()) - set(bare.state_dict())
    last = "6.bias" if name == "mlp" else "head.bias"
    assert len(gone) == (2 if name == "mlp" else 10)
    assert last not in gone
    torch.testing.assert_close(bare.eval()(x), model.eval()(x))
    torch.testing.assert_close(bare.train()(x), model.train()(x))
    model(x).square().sum().backward()
    bare(x).square().sum().backward()
    for where, parameter in bare.named_parameters():
        torch.testing.assert_close(parameter.grad, model.get_parameter(where).grad, rtol=1e-6, atol=1e-8)
    for where in gone:
        assert float(model.get_parameter(where).grad.abs().max()) < 1e-9  # type: ignore[union-attr]


class Block(nn.Module):
    """A convolution and what reads it, by name."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm: nn.Module = nn.GroupNorm(2, 4) if way == "group norm" else nn.BatchNorm2d(4)
        if way == "frozen":
            self.norm = evenly.BatchNorm2d(4, bias=False)
            self.norm.frozen = True
        self.again = nn.Conv2d(3, 4, 1)
        if way == "tied":
            self.again.bias = self.conv.bias
        if way == "shared":
            self.again = self.conv
        if way == "heard":
            self.conv.register_forward_hook(lambda module, inputs, output: None)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        """The norm of the convolution, and perhaps the convolution itself."""
        y = self.conv(x)
        if self.way == "relu between":
            y = F.relu(y)
        z = self.norm(y)
        return z + y if self.way == "read twice" else z


@pytest.mark.parametrize("way", ["read twice", "relu between", "group norm", "frozen", "tied", "shared", "heard"])
def test_a_bias_that_matters_stays(way: str) -> None:
    """Read elsewhere, changed in between, not subtracted, or held by somebody else."""
    block = evenly.convert(Block(way), drop_bias=True)
    assert block.conv.bias is not None


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.BatchNorm2d(4, affine=False)])
def test_batch_and_instance_norm_subtract_it(norm: nn.Module) -> None:
    """Both take the mean out of each channel, with weights or without; transposed convolutions, too."""
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), norm).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = model(x)
    evenly.convert(model, drop_bias=True)
    assert model[0].bias is None
    torch.testing.assert_close(model(x), expected)


def test_a_block_that_branches_is_left_and_named() -> None:
    """Without a data flow there is no proof."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) if x.mean() > 0 else self.conv(x)

    with pytest.warns(UserWarning, match="branches on its input"):
        block = evenly.convert(Branching(), drop_bias=True)
    assert block.conv.bias is not None
