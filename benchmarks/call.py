"""What a call costs before any number is computed, when the caches are warm and when a tensor has just swept them.

    python benchmarks/call.py > benchmarks/results/call.txt

A tensor of one sample, 16 channels and 8×8 places is normalized forward and backward: by evenly, by torch's two
operators, and beside them by a ReLU alone and by an autograd function that does nothing. Cold, 50 MiB are copied
before each half, as a training step's convolutions would. All take turns; medians, in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenly


class Empty(torch.autograd.Function):
    """An output and three gradients of the right shapes, not computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A tensor like ``x``."""
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        """Tensors like the inputs."""
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


def main() -> None:
    """Measure and print."""
    x, dy = torch.randn(1, 16, 8, 8, requires_grad=True), torch.randn(1, 16, 8, 8)
    ours, theirs = evenly.BatchNorm2d(16, activation="relu"), nn.BatchNorm2d(16)
    weight, bias = theirs.weight, theirs.bias
    calls: dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]] = {
        "evenly, norm + ReLU": (lambda: ours(x), (x, ours.weight, ours.bias)),
        "torch, norm, ReLU": (lambda: F.relu(theirs(x), inplace=True), (x, weight, bias)),
        "torch, ReLU alone": (lambda: F.relu(x), (x,)),
        "a function that does nothing": (lambda: Empty.apply(x, weight, bias), (x, weight, bias)),
    }
    sweep, swept = torch.randn(50, 1 << 18), torch.empty(50, 1 << 18)
    for state, turns, steps in (("warm", 100, 50), ("cold", 40, 4)):
        halves: dict[str, list[list[float]]] = {name: [[], []] for name in calls}
        names = list(calls)
        for turn in range(turns):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                call, wanted = calls[name]
                for step in range(steps):
                    if state == "cold":
                        swept.copy_(sweep)
                    start = perf_counter()
                    y = call()
                    middle = perf_counter()
                    if state == "cold":
                        swept.copy_(sweep)
                    again = perf_counter()
                    torch.autograd.grad(y, wanted, dy)
                    if step:  # the first of a turn follows another's
                        halves[name][0].append(middle - start)
                        halves[name][1].append(perf_counter() - again)
        print(f"{state:32} forward  backward")
        for name, (forward, backward) in halves.items():
            print(f"{name:32} {1e6 * median(forward):7.0f}  {1e6 * median(backward):8.0f}")


if __name__ == "__main__":
    main()
