"""What does `evenly.watch` cost a training loop at its default interval?

    python benchmarks/watch.py

Watched and unwatched runs of 100 steps take turns, so that a machine that slows down slows both; the
cost is the ratio of their medians, given with the quartiles of the ratios of neighbours. The clock is
the processor time of one thread: what else the machine does is not counted.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

import evenly

_STEPS, _ROUNDS = 100, 5


def convolutional(width: int = 16, depth: int = 8) -> nn.Sequential:
    """Convolutions with batch norm, on images of 16 x 16."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def dense(width: int = 256, depth: int = 4) -> nn.Sequential:
    """A small dense network, whose steps are so short that any hook shows."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.LazyLinear(width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def seconds(model: nn.Module, x: Tensor, y: Tensor, watched: bool) -> float:
    """The time of some training steps."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    start = time.process_time()
    if watched:
        with evenly.watch(model):
            _train(model, x, y, optimizer)
    else:
        _train(model, x, y, optimizer)
    return time.process_time() - start


def _train(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    """Measure both networks and print one line for each."""
    torch.set_num_threads(1)
    for name, model, x in (
        ("convolutional, 8 norms, batch 64 of 16 x 16", convolutional(), torch.randn(64, 3, 16, 16)),
        ("dense, 4 norms of 256, batch 256", dense(), torch.randn(256, 64)),
    ):
        y = torch.randint(10, (len(x),))
        model.train()(x)
        pairs = [(seconds(model, x, y, False), seconds(model, x, y, True)) for _ in range(_ROUNDS + 1)][1:]
        plain, watched = (statistics.median(times) for times in zip(*pairs, strict=True))
        low, _, high = statistics.quantiles([b / a - 1 for a, b in pairs], n=4)
        print(
            f"{name}: {1e3 * plain / _STEPS:.2f} ms a step, watched {100 * (watched / plain - 1):+.1f} % "
            f"(quartiles {100 * low:+.1f} to {100 * high:+.1f} %)",
            flush=True,
        )


if __name__ == "__main__":
    main()
