"""What sharing statistics between processes costs: a step with and without, for 1, 2 and more processes.

    python benchmarks/sync.py                    # prints the tables, about a minute
    python benchmarks/sync.py --json FILE        # and keeps the numbers

Each process has one thread and its own share of the batch. The two kinds run turn by turn within
one run, and what is printed is the median of the pairs; before that, both kinds are checked against
one process on all data, and a layer that disagrees is not timed. More processes than cores measure
the cores: such rows are marked.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import evenly
from evenly.bench.results import machine
from evenly.nn.sync import processes

LAYERS = {"64 x 28 x 28": (64, 28, 28), "256 x 14 x 14": (256, 14, 14), "512 x 7 x 7": (512, 7, 7), "512": (512,)}
SAMPLES = 16  # of each process


class Pair(NamedTuple):
    """Milliseconds of a step without and with sharing: medians, and the quartiles of the difference."""

    plain: float
    sync: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """How many times longer a step with sharing takes."""
        return self.sync / self.plain


def main() -> None:
    """Run every number of processes and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=40, help="pairs of steps that are timed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"schema": "sync-1", "machine": machine(), "samples": SAMPLES, "rows": []}
    cores = len(os.sched_getaffinity(0))
    for size in options.processes:
        found = launch(size, options.rounds)
        mark = " (more than cores: this measures the cores)" if size > cores else ""
        print(f"\n{size} process{'es' if size > 1 else ''}{mark}, {SAMPLES} samples each, one thread each")
        print(f"{'forward + backward of':24} {'plain ms':>9} {'sync ms':>9} {'added ms':>9}  {'quartiles':>15}  ratio")
        for name, pair in found.items():
            spread = f"{pair.low:6.2f} to {pair.high:5.2f}"
            added = pair.sync - pair.plain
            print(f"{name:24} {pair.plain:9.2f} {pair.sync:9.2f} {added:9.2f}  {spread:>15} {pair.ratio:6.2f}")
            results["rows"].append({"processes": size, "over cores": size > cores, "case": name, **pair._asdict()})
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def launch(size: int, rounds: int) -> dict[str, Pair]:
    """Time all cases with ``size`` processes; process 0's times."""
    with tempfile.TemporaryDirectory() as folder:
        answers = mp.get_context("spawn").SimpleQueue()
        mp.spawn(member, (size, rounds, str(Path(folder, "store")), answers), nprocs=size)
        return {name: Pair(*numbers) for name, numbers in answers.get().items()}


def member(rank: int, size: int, rounds: int, store: str, answers: Any) -> None:
    """One process: join the others, then every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    found = {}
    for name, shape in LAYERS.items():
        check(rank, size, shape)
        found[f"layer {name}"] = pair_of(lambda sync, s=shape: layer_step(s, sync), rounds)
    found["8 convolutions and norms"] = pair_of(network_step, rounds)
    if size > 1:
        found["the two messages, C = 256"] = pair_of(message_step, rounds)
    if rank == 0:
        answers.put({name: tuple(pair) for name, pair in found.items()})
    dist.barrier()
    dist.destroy_process_group()


def check(rank: int, size: int, shape: Sequence[int]) -> None:
    """Refuse to time a layer that does not give what one process gives on all data."""
    x = torch.randn(size * SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    whole = evenly.BatchNorm(shape[0], dtype=torch.float64)(x.double())
    mine = evenly.SyncBatchNorm(shape[0])(x[rank * SAMPLES : (rank + 1) * SAMPLES])
    error = (mine - whole[rank * SAMPLES : (rank + 1) * SAMPLES]).abs().max()
    if error > 1e-4:
        raise SystemExit(f"SyncBatchNorm of {shape} is off by {error:.2g} from one process on all data; not timed.")


def layer_step(shape: Sequence[int], sync: bool) -> Callable[[], object]:
    """Forward and backward of one norm with its ReLU."""
    layer = evenly.BatchNorm(shape[0], activation="relu", sync=sync)
    x = torch.randn(SAMPLES, *shape, requires_grad=True)
    dy = torch.randn(SAMPLES, *shape)
    return lambda: layer(x).backward(dy)


def network_step(sync: bool) -> Callable[[], object]:
    """Forward and backward of eight convolutions, each with its norm."""
    layers: list[nn.Module] = []
    for channels, previous in ((32, 3), *[(32, 32)] * 3, (64, 32), *[(64, 64)] * 3):
        stride = 2 if channels != previous else 1
        layers += [nn.Conv2d(previous, channels, 3, stride, 1, bias=False)]
        layers += [evenly.BatchNorm(channels, activation="relu", sync=sync)]
    model, x = nn.Sequential(*layers), torch.randn(SAMPLES, 3, 32, 32)
    return lambda: model(x).sum().backward()


def message_step(sync: bool) -> Callable[[], object]:
    """What a layer of 256 channels sends and receives, alone; nothing where not shared."""
    from evenly.backends.reference import Sums
    from evenly.core.moments import Moments

    group = processes(None)
    mean = torch.randn(1, 256)
    sums = Sums(mean, mean, mean[0], mean[0])
    assert group is not None
    return (lambda: (group.merge(Moments(16, mean, mean.square())), group.add(sums))) if sync else lambda: None


def pair_of(step_of: Callable[[bool], Callable[[], object]], rounds: int) -> Pair:
    """Both kinds of a step, turn by turn, all processes starting together."""
    steps = step_of(False), step_of(True)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 5):
        for kind, step in enumerate(steps):
            dist.all_reduce(torch.zeros(1))
            started = time.perf_counter()
            step()
            if number >= 5:
                times[kind].append(1e3 * (time.perf_counter() - started))
    low, _, high = quantiles([s - p for p, s in zip(*times, strict=True)], n=4)
    return Pair(median(times[0]), median(times[1]), low, high)


if __name__ == "__main__":
    main()
