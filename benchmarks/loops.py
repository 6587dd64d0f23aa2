"""How fast the kernels' four loops go when memory does not hold them up: one thread, tensors that stay in the caches.

    python benchmarks/loops.py > benchmarks/results/loops.txt

Each figure is in thousand million elements a second: what 1.5 MiB of input take longer than half of
it, so that the call itself does not count; the best of many passes, ReLU included. Beside what memory
gives (``benchmarks/memory.cpp``) they say what bounds a norm; docs/benchmarks.md does the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from time import perf_counter

import torch
from torch import Tensor

from evenly.backends import cpu, reference
from evenly.backends.records import Kept, Tensors
from evenly.core.activation import Activation
from evenly.core.norm import Norm
from evenly.core.partition import Partition

BYTES = 1536 << 10
SAMPLES = 32
RELU = Activation.of("relu")
PLANES = {"planes of 56×56": 56, "planes of 28×28": 28, "planes of 14×14": 14, "planes of 7×7": 7, "channels last": 0}


Step = Callable[[], object]


def loops(x: Tensor, dy: Tensor) -> tuple[Step, ...]:
    """Measuring, applying, summing, and making the input's gradient."""
    norm = Norm(Partition.of_batch(tuple(x.shape), 1), 1e-5, RELU)
    order = tuple(range(x.ndim))
    kernel, definition = cpu.prepare(norm, x, order), reference.prepare(norm, x.double(), order)
    tensors = Tensors(torch.ones(norm.partition.channels), torch.zeros(norm.partition.channels))
    found = kernel.moments(x)
    torch.testing.assert_close(found.mean.double(), definition.moments(x.double()).mean, rtol=0, atol=1e-5)
    mean, rstd = found.mean, torch.rsqrt(found.var + norm.eps)
    kept = Kept(mean, rstd, found.count)
    sums = kernel.backward_sums(dy, x, tensors, kept)
    return (
        lambda: kernel.moments(x),
        lambda: kernel.normalize(x, tensors, mean, rstd, keep=False),
        lambda: kernel.backward_sums(dy, x, tensors, kept),
        lambda: kernel.backward_input(dy, x, tensors, kept, sums, dresidual=False),
    )


def seconds(steps: Sequence[Step]) -> list[float]:
    """The best of 500 passes of each, in turns."""
    best = [float("inf")] * len(steps)
    for _ in range(500):
        for i, step in enumerate(steps):
            start = perf_counter()
            step()
            best[i] = min(best[i], perf_counter() - start)
    return best


def shapes(side: int, elements: int) -> list[tuple[int, ...]]:
    """Two shapes, the first of twice as many samples; a sample is whole cache lines."""
    if not side:
        return [(elements // 256, 256), (elements // 512, 256)]
    lines = 32 // gcd(side**2, 32)
    channels = max(1, elements // SAMPLES // side**2 // lines) * lines
    return [(SAMPLES, channels, side, side), (SAMPLES // 2, channels, side, side)]


def main() -> None:
    """One line for each type and shape."""
    torch.set_num_threads(1)
    print(f"{'':34}{'measure':>9}{'apply':>9}{'sum':>9}{'input':>9}")
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for name, side in PLANES.items():
            tensors = [
                [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
                for shape in shapes(side, BYTES // dtype.itemsize)
            ]
            more = tensors[0][0].numel() - tensors[1][0].numel()
            pairs = zip(*(loops(x, dy) for x, dy in tensors), strict=True)
            rates = [more / (long - short) / 1e9 for long, short in map(seconds, pairs)]
            label = f"{str(dtype).removeprefix('torch.')}, {name}"
            print(f"{label:34}{''.join(f'{rate:9.1f}' for rate in rates)}")


if __name__ == "__main__":
    main()
