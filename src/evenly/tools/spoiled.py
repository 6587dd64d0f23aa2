"""A small network trained on digits, then spoiled in five ways that happen to people.

    evenly demo FOLDER          writes this module, good.pt and five spoiled checkpoints
    cd FOLDER
    evenly diagnose spoiled:build --data spoiled:batches --weights nan.pt --fix mended.pt

Every file evaluates badly, and every one is mended without training.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import evenly


def build() -> nn.Sequential:
    """Three convolutions with batch norm, on images of 8 x 8."""
    layers: list[nn.Module] = []
    for inside, width in ((1, 16), (16, 16), (16, 32)):
        layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def digits() -> tuple[Tensor, Tensor]:
    """Images of shape (1797, 1, 8, 8) from 0 to 1, and their classes, in a fixed random order."""
    data = np.load(Path(evenly.__file__).parent / "lab" / "data" / "digits.npz")
    order = torch.randperm(len(data["y"]), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data["x"], dtype=torch.float32)[order, None] / 16, torch.tensor(data["y"]).long()[order]


def batches(size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Shuffled batches that training did not see, with labels."""
    x, y = digits()
    return list(zip(x[-512:].split(size), y[-512:].split(size), strict=True))


def train(model: nn.Module, steps: int, lr: float, *, decay: bool = True, average: AveragedModel | None = None) -> None:
    """Plain SGD on all but the last 512 digits."""
    x, y = (t[:-512] for t in digits())
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02 if decay else 1.0, steps)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(model)


def reset(model: nn.Sequential) -> None:
    """One norm was left out when the weights were copied: its statistics are new."""
    norm = model[4]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.reset_running_stats()


def nan(model: nn.Sequential) -> None:
    """One broken image in one training batch."""
    x = batches()[0][0].clone()
    x[3] = torch.nan
    model.train()(x)


def momentum(model: nn.Sequential) -> None:
    """Keras's momentum=0.99 in PyTorch's argument; the last batch was of one class."""
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.99
    x, y = digits()
    model.train()(x[y == 1][:8])


def forgotten(model: nn.Sequential) -> None:
    """Tried on other data, white on black, without eval() before."""
    model.train()
    for x, _ in batches():
        model(1 - x)


def averaged(model: nn.Sequential) -> None:
    """Averaged weights (SWA), with the statistics of the last step's."""
    average = AveragedModel(model)
    train(model, 100, 0.2, decay=False, average=average)
    model.load_state_dict({**average.module.state_dict(), **_statistics(model)})


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if "running" in key}


WAYS = {"reset": reset, "nan": nan, "momentum": momentum, "forgotten": forgotten, "averaged": averaged}


def main(folder: str) -> None:
    """Train, spoil, write."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    good = build()
    train(good, 300, 0.05)
    torch.save(good.state_dict(), out / "good.pt")
    for name, spoil in WAYS.items():
        model = copy.deepcopy(good)
        spoil(model)
        torch.save(model.state_dict(), out / f"{name}.pt")
    print(f"wrote good.pt and {len(WAYS)} spoiled checkpoints to {out}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "spoiled")
