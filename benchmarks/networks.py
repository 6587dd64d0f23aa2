"""Compact definitions of the networks that the benchmarks and tests train.

Written as such networks are written everywhere: blocks that share one ReLU module, functional
adds, in-place activations. ``width`` scales the channels (64 in the papers' ResNets).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inside, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def _shortcut(inside: int, outside: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inside == outside:
        return None
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class ResNet(nn.Module):
    """He et al., 2015, https://arxiv.org/abs/1512.03385."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: list[int], width: int = 64, classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inside = [], width
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                blocks.append(block(inside, width << stage, stride))
                inside = (width << stage) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(N, classes)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet18(width: int = 64, classes: int = 1000) -> ResNet:
    """18 layers."""
    return ResNet(BasicBlock, [2, 2, 2, 2], width, classes)


def resnet50(width: int = 64, classes: int = 1000) -> ResNet:
    """50 layers, 53 norms."""
    return ResNet(Bottleneck, [3, 4, 6, 3], width, classes)


class InvertedResidual(nn.Module):
    """Expand, convolve by channel, project; the shortcut is added after the last norm."""

    def __init__(self, inside: int, outside: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        layers: list[nn.Module] = [] if expand == 1 else [_conv_norm_relu6(inside, hidden, 1, 1, 1)]
        layers += [
            _conv_norm_relu6(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        if self.use_shortcut:
            return x + self.conv(x)
        return self.conv(x)


def _conv_norm_relu6(inside: int, outside: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU6(inplace=True))


def mobilenetv2(width: int = 32, classes: int = 1000) -> nn.Sequential:
    """Sandler et al., 2018, https://arxiv.org/abs/1801.04381; ``width`` is the first layer's, 32 in the paper."""
    scale = width / 32
    layers: list[nn.Module] = [nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(inplace=True)
    )]  # fmt: skip
    inside = width
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, channels, repeat, stride in rows:
        outside = int(channels * scale)
        for place in range(repeat):
            layers.append(InvertedResidual(inside, outside, stride if place == 0 else 1, expand))
            inside = outside
    last = int(1280 * scale)
    layers += [_conv_norm_relu6(inside, last, 1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
    return nn.Sequential(*layers)


def mlp(inside: int = 784, width: int = 512, classes: int = 10) -> nn.Sequential:
    """Three dense layers; their biases stand before a norm, as many people write them."""
    return nn.Sequential(
        nn.Linear(inside, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, classes),
    )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597, with batch norm; two levels down and up."""

    def __init__(self, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList([_twice(3, width), _twice(width, 2 * width)])
        self.bottom = _twice(2 * width, 4 * width)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.merge = nn.ModuleList([_twice(4 * width, 2 * width), _twice(2 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel, shape ``(N, classes, H, W)``."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, block in zip(self.up, self.merge, strict=True):
            x = block(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


def _twice(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.LeakyReLU(0.1, inplace=True),
    )  # fmt: skip
