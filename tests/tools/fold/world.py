"""Small networks made of patterns, each with a label: how many norms can be folded exactly, how many cannot.

The labels are written here by hand, beside the networks, and know nothing of the folder. A network is a list
of (pattern, seed); a sigmoid stands between the patterns, so that each label holds by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenly

Spec = list[tuple[str, int]]
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OURS = {1: evenly.BatchNorm1d, 2: evenly.BatchNorm2d, 3: evenly.BatchNorm3d}
MEAN = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GREATEST = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
PAD = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


class Place(NamedTuple):
    """Where a pattern stands: its dice, the channels that come in, the rank."""

    dice: random.Random
    channels: int
    rank: int


class Made(NamedTuple):
    """A pattern built: module, channels that go out, norms that can be folded, norms that cannot."""

    module: nn.Module
    channels: int
    foldable: int
    left: int = 0


class Frozen(nn.Module):
    """The formula of torchvision's and detectron2's frozen norm, in a class of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # which torch.fx cannot follow
            return x
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.reshape(shape) + (self.bias - self.running_mean * scale).reshape(shape)


class Two(nn.Module):
    """Two layers of one input, joined by ``join``, then what follows."""

    def __init__(self, join: str, one: nn.Module, other: nn.Module, *then: nn.Module) -> None:
        super().__init__()
        self.join, self.one, self.other, self.then = join, one, other, nn.Sequential(*then)

    def forward(self, x: Tensor) -> Tensor:
        if self.join == "cat":
            return self.then(torch.cat([self.one(x), self.other(x)], 1))
        if self.join == "into":
            return self.then(torch.cat([x.tanh(), self.one(x)], 1))
        return self.then(self.one(x) + self.other(x))


class Branches(nn.Module):
    """RepVGG's and MobileOne's sum."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.branches)  # type: ignore[return-value]


class Twice(nn.Module):
    """Two layers, each called with each of two: one convolution for two norms, or one norm for two convolutions."""

    def __init__(self, layers: list[nn.Module], norms: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        one = self.norms[0](self.layers[0](x))
        other = self.norms[-1](self.layers[-1](x * 0.5))
        return one.sigmoid() + other.tanh()


class Apart(nn.Module):
    """One convolution whose output two norms read: neither can be folded."""

    def __init__(self, layer: nn.Module, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.layer, self.one, self.other = layer, one, other

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.one(y).tanh() * self.other(y).sigmoid()


class Flat(nn.Module):
    """A norm, then a linear layer over the last axis and back, by reshape and transpose."""

    def __init__(self, norm: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        shape = y.shape
        y = self.linear(y.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(shape[0], -1, *shape[2:])


class Behind(nn.Module):
    """A linear layer over the channels, a transpose, a norm."""

    def __init__(self, linear: nn.Linear, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = linear, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.movedim(1, -1)).movedim(-1, 1))


class Residual(nn.Module):
    """evenly's norm with its residual and activation."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x), residual=x)


class InPlace(nn.Module):
    """What a norm reads was written over through another name: the norm sees the ReLU's output."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        F.relu(y, inplace=True)
        return self.norm(y)


def conv(at: Place, inside: int, outside: int, **fixed: object) -> nn.Module:
    """A convolution with dice for all that is not fixed."""
    dice = at.dice
    groups = dice.choice([g for g in range(1, inside + 1) if inside % g == 0 and outside % g == 0])
    given: dict[str, object] = {
        "kernel_size": dice.choice([1, 2, 3]), "stride": dice.choice([1, 1, 2]), "padding": dice.choice([0, 1]),
        "dilation": dice.choice([1, 1, 2]), "groups": groups, "bias": dice.random() < 0.5,
        "padding_mode": dice.choice(["zeros", "zeros", "reflect", "replicate", "circular"]),
    }  # fmt: skip
    given.update(fixed)
    return CONV[at.rank](inside, outside, **given)  # type: ignore[arg-type]


def norm(at: Place, channels: int, *, positive: bool = False, shift: bool = True, affine: bool = True) -> nn.Module:
    """A norm with statistics as after training, some odd; scales of both signs unless ``positive``."""
    layer = NORM[at.rank](channels, eps=at.dice.choice([1e-5, 1e-3, 0.0]), affine=affine or at.dice.random() < 0.9)
    return settle(layer, at, positive=positive, shift=shift)


def settle(layer: nn.Module, at: Place, *, positive: bool = False, shift: bool = True) -> nn.Module:
    """Statistics and weights by the dice."""
    made = torch.Generator().manual_seed(at.dice.randrange(2**31))
    mean, var = layer.running_mean, layer.running_var
    mean.copy_(torch.randn(mean.shape, generator=made))
    var.copy_(torch.rand(var.shape, generator=made) * 2 + 0.1)
    if layer.eps and at.dice.random() < 0.1:
        var[0] = 0.0
    if layer.weight is not None:
        weight = torch.rand(mean.shape, generator=made) + 0.5
        sign = 1 if positive else torch.where(torch.rand(mean.shape, generator=made) < 0.5, -1.0, 1.0)
        bias = torch.randn(mean.shape, generator=made)
        with torch.no_grad():
            layer.weight.copy_(weight * sign)
            layer.bias.copy_(bias)
    if not shift:
        with torch.no_grad():
            mean.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
    return layer


def out(at: Place) -> int:
    """A number of channels."""
    return at.dice.choice([2, 3, 4, 6])


def _conv_norm(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c), norm(at, c)), c, 1)


def _depthwise(at: Place) -> Made:
    c = at.channels * at.dice.choice([1, 2])
    return Made(nn.Sequential(conv(at, at.channels, c, groups=at.channels), norm(at, c)), c, 1)


def _same_padding(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c, padding="same", stride=1, kernel_size=2), norm(at, c)), c, 1)


def _transposed(at: Place) -> Made:
    groups = at.dice.choice([g for g in range(1, at.channels + 1) if at.channels % g == 0])
    c = groups * at.dice.choice([1, 2, 3])
    layer = TRANSPOSED[at.rank](
        at.channels, c, at.dice.choice([1, 2, 3]), stride=at.dice.choice([1, 2]), groups=groups,
        bias=at.dice.random() < 0.5,
    )  # fmt: skip
    return Made(nn.Sequential(layer, norm(at, c)), c, 1)


def _before_transposed(at: Place) -> Made:
    c = out(at)
    left = at.dice.random() < 0.5
    layer = TRANSPOSED[at.rank](at.channels, c, 2, stride=2)
    return Made(nn.Sequential(norm(at, at.channels, shift=left), layer), c, 1 - left, int(left))


def _before(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(norm(at, at.channels), conv(at, at.channels, c, padding=0)), c, 1)


def _before_padded(at: Place) -> Made:
    c = out(at)
    layer = conv(at, at.channels, c, padding=at.dice.choice([1, 2]), padding_mode="zeros")
    return Made(nn.Sequential(norm(at, at.channels), layer), c, 1)


def _before_padding(at: Place) -> Made:
    c = out(at)
    value = at.dice.choice([0.0, 0.0, 1.5])
    layers = norm(at, at.channels), PAD[at.rank](at.dice.choice([1, 2]), value), conv(at, at.channels, c, padding=0)
    return Made(nn.Sequential(*layers), c, 1)


def _zero_scale(at: Place) -> Made:
    c = out(at)
    made = norm(at, at.channels)
    if made.weight is None:
        return _before_padded(at)
    with torch.no_grad():
        made.weight[0], made.bias[0] = 0.0, 1.0
    return Made(nn.Sequential(made, conv(at, at.channels, c, padding=1, kernel_size=3, padding_mode="zeros")), c, 0, 1)


def _mean(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c, stride=1, padding=1), MEAN[at.rank](2, 1), norm(at, c)), c, 1)


def _greatest(at: Place) -> Made:
    c, positive = out(at), at.dice.random() < 0.6
    made = norm(at, c, positive=positive, affine=True)
    if not positive and made.weight is not None:
        with torch.no_grad():
            made.weight[0] = -1.0
    can = positive or made.weight is None
    layers = conv(at, at.channels, c, stride=1, padding=1), GREATEST[at.rank](2, 1), made
    return Made(nn.Sequential(*layers), c, int(can), int(not can))


def _identity(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c), nn.Dropout(0.3), nn.Identity(), norm(at, c)), c, 1)


def _relu(at: Place) -> Made:
    c = out(at)
    activation = at.dice.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2)])
    return Made(nn.Sequential(conv(at, at.channels, c), activation, norm(at, c, positive=True, shift=False)), c, 1)


def _relu_shift(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c), nn.ReLU(), norm(at, c, positive=True)), c, 0, 1)


def _cat(at: Place) -> Made:
    a, b = out(at), out(at)
    same = {"stride": 1, "kernel_size": 3, "padding": 1, "dilation": 1}
    return Made(
        Two("cat", conv(at, at.channels, a, **same), conv(at, at.channels, b, **same), norm(at, a + b)), a + b, 1
    )


def _into_cat(at: Place) -> Made:
    c = out(at)
    layer = conv(at, 2 * at.channels, c, padding=at.dice.choice([0, 1]))
    return Made(Two("into", norm(at, at.channels), nn.Identity(), layer), c, 1)


def _sum(at: Place) -> Made:
    c = out(at)
    same = {"stride": 1, "kernel_size": 3, "padding": 1, "dilation": 1}
    return Made(Two("sum", conv(at, at.channels, c, **same), conv(at, at.channels, c, **same), norm(at, c)), c, 1)


def _dense(at: Place) -> Made:
    c = out(at)
    second = nn.Sequential(
        norm(at, at.channels), nn.ReLU(), conv(at, at.channels, c, kernel_size=1, padding=0, stride=1)
    )
    return Made(nn.Sequential(second, norm(at, c)), c, 1, 1)


def _repvgg(at: Place) -> Made:
    c, dice = at.channels, at.dice
    groups = dice.choice([g for g in range(1, c + 1) if c % g == 0])
    same = {"stride": 1, "dilation": 1, "groups": groups, "padding_mode": "zeros", "bias": dice.random() < 0.2}
    branches = [
        nn.Sequential(conv(at, c, c, kernel_size=3, padding=1, **same), norm(at, c)),
        nn.Sequential(conv(at, c, c, kernel_size=1, padding=0, **same), norm(at, c)),
    ]
    if dice.random() < 0.7:
        branches.append(norm(at, c))
    if dice.random() < 0.3:
        branches.append(nn.Sequential(conv(at, c, c, kernel_size=3, padding=1, **same), norm(at, c)))
    dice.shuffle(branches)
    return Made(Branches(branches), c, len(branches))


def _shared_conv(at: Place) -> Made:
    c = out(at)
    return Made(Twice([conv(at, at.channels, c)], [norm(at, c), norm(at, c)]), c, 2)


def _shared_norm(at: Place) -> Made:
    c, same = out(at), {"stride": 1, "kernel_size": 3, "padding": 1, "dilation": 1}
    return Made(Twice([conv(at, at.channels, c, **same), conv(at, at.channels, c, **same)], [norm(at, c)]), c, 2)


def _shared_both(at: Place) -> Made:
    c = out(at)
    return Made(Twice([conv(at, at.channels, c)], [norm(at, c)]), c, 2)


def _apart(at: Place) -> Made:
    c = out(at)
    return Made(Apart(conv(at, at.channels, c), norm(at, c), norm(at, c)), c, 0, 2)


def _linear_behind(at: Place) -> Made:
    c = out(at)
    return Made(Flat(norm(at, at.channels), nn.Linear(at.channels, c)), c, 1)


def _linear_before(at: Place) -> Made:
    c = out(at)
    return Made(Behind(nn.Linear(at.channels, c, bias=at.dice.random() < 0.5), norm(at, c)), c, 1)


def _norm_norm(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c), norm(at, c), norm(at, c)), c, 2)


def _ours(at: Place) -> Made:
    c = out(at)
    activation = at.dice.choice([None, "relu", "silu", "gelu", "elu", "leaky_relu", "relu6"])
    layer = settle(OURS[at.rank](c, activation=activation), at)
    return Made(nn.Sequential(conv(at, at.channels, c), layer), c, 1)


def _ours_left(at: Place) -> Made:
    layer = settle(OURS[at.rank](at.channels, activation=at.dice.choice(["relu", "gelu", "elu"])), at)
    return Made(layer, at.channels, 0, 1)


def _residual(at: Place) -> Made:
    c = at.channels
    layer = conv(at, c, c, kernel_size=3, padding=1, stride=1, dilation=1)
    return Made(Residual(layer, settle(OURS[at.rank](c, activation="relu"), at)), c, 1)


def _frozen(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c), settle(Frozen(c), at)), c, 1)


def _in_place(at: Place) -> Made:
    c = out(at)
    return Made(InPlace(conv(at, at.channels, c), norm(at, c)), c, 0, 1)


def _measures(at: Place) -> Made:
    c = out(at)
    return Made(nn.Sequential(conv(at, at.channels, c), NORM[at.rank](c, track_running_stats=False)), c, 0, 1)


PATTERNS: dict[str, Callable[[Place], Made]] = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if name.startswith("_") and getattr(function, "__annotations__", {}).get("return") == "Made"
}


class Network(NamedTuple):
    """A network in evaluation, an input for it, and its label."""

    model: nn.Module
    x: Tensor
    foldable: int
    left: int


def draw(seed: int) -> Spec:
    """A random specification; its first seed also decides the rank."""
    dice = random.Random(seed)
    return [(dice.choice(list(PATTERNS)), dice.randrange(2**31)) for _ in range(dice.choice([1, 2, 3, 4]))]


def build(spec: Spec, rank: int, dtype: torch.dtype = torch.float64) -> Network:
    """The network of a specification; the same for the same."""
    channels, foldable, left = 3, 0, 0
    layers: list[nn.Module] = []
    for name, seed in spec:
        torch.manual_seed(seed)
        made = PATTERNS[name](Place(random.Random(seed), channels, rank))
        layers += [made.module, nn.Sigmoid()]
        channels, foldable, left = made.channels, foldable + made.foldable, left + made.left
    x = torch.randn(2, 3, *[{1: 21, 2: 13, 3: 9}[rank]] * rank, dtype=torch.float64)
    return Network(nn.Sequential(*layers).to(dtype).eval(), x.to(dtype), foldable, left)
