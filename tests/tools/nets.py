"""Small real architectures, trained for a moment on real digits."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenly


class Basic(nn.Module):
    """The basic block of a residual network."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and a shortcut."""
        skip = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + skip)


class ResNet(nn.Module):
    """A residual network in small: a stem, two stages, a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Basic(width, width), Basic(width, width))
        self.layer2 = nn.Sequential(Basic(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape (N, 1, 8, 8) to logits."""
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, as MobileNet stacks them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape (N, 1, 8, 8) to logits."""
        x = F.relu6(self.norm1(self.depthwise(self.stem(x))))
        return self.head(F.relu6(self.norm2(self.pointwise(x))).amax((2, 3)))


def dense() -> nn.Sequential:
    """Three layers, normalised before the activation."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


MAKERS = {"dense": dense, "resnet": ResNet, "separable": Separable}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits in a fixed random order: images of shape (N, 1, 8, 8), about 0 to 1, and labels."""
    data = np.load(Path(evenly.__file__).parent / "lab" / "data" / "digits.npz")
    order = torch.randperm(len(data["y"]), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data["x"], dtype=torch.float32)[:, None] / 16
    return images[order], torch.tensor(data["y"], dtype=torch.long)[order]


def batches(number: int = 12, size: int = 64, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of digits with their labels."""
    x, y = digits()
    return [(x[i : i + size], y[i : i + size]) for i in range(start, start + number * size, size)]


def train(model: nn.Module, steps: int = 100, size: int = 64, lr: float = 0.1) -> nn.Module:
    """The model after some steps of plain SGD on the digits from number 512 on."""
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    model.train()
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        index = torch.randint(512, len(x), (size,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        decay.step()
    return model.eval()


@cache
def _trained(name: str) -> nn.Module:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for a second thread
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return train(MAKERS[name](), steps=200, lr=0.02)
    finally:
        torch.set_num_threads(threads)


def trained(name: str) -> nn.Module:
    """A copy of an architecture trained for a moment."""
    return copy.deepcopy(_trained(name))
