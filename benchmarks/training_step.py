"""One training step before and after ``evenly.convert(fuse=True)``: time, peak memory, and the same losses.

    python benchmarks/training_step.py [--only resnet18,mlp] [--json FILE]

Both models start from the same weights, see the same batches and take turns, step by step; the
ratio of their times is formed round by round. Their losses must agree, or no time is given: rounding,
which training magnifies, drives them apart, so the judge is how far torch's own are driven apart by
weights changed in their last bits. Beside them runs the same network without its norms and
activations, which says how much faster a step could be at all. Peak memory is that of one step of each
model in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenly
from evenly.bench import results
from evenly.bench.timing import Spread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import networks  # a script's own folder is not the repository

Batch = tuple[Tensor, Tensor]
ROUNDS = 7
JUDGED = 4  # steps; a wrong gradient shows in the second
NUDGE = 1e-7  # of every weight: what rounding may be taken for
AGREE = 10  # times as far as the nudge drives torch's own losses apart, or
LEAST = 1e-5  # of the loss


def images(samples: int, size: int, classes: int) -> Batch:
    """Random images and labels."""
    return torch.randn(samples, 3, size, size), torch.randint(classes, (samples,))


STEPS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "resnet18, 16×112²": (networks.resnet18, lambda: images(16, 112, 1000)),
    "resnet50, 8×112²": (networks.resnet50, lambda: images(8, 112, 1000)),
    "mobilenetv2, 16×112²": (networks.mobilenetv2, lambda: images(16, 112, 1000)),
    "resnet18, 32×224²": (networks.resnet18, lambda: images(32, 224, 1000)),
    "resnet50, 32×224²": (networks.resnet50, lambda: images(32, 224, 1000)),
    "mobilenetv2, 32×224²": (networks.mobilenetv2, lambda: images(32, 224, 1000)),
    "unet": (networks.UNet, lambda: (torch.randn(4, 3, 96, 96), torch.randint(2, (4, 96, 96)))),
    "mlp": (networks.mlp, lambda: (torch.randn(256, 784), torch.randint(10, (256,)))),
}


class Trainer:
    """A model and its optimizer; each call is one step and returns the loss."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def __call__(self, batch: Batch) -> float:
        """One step; the loss before it."""
        x, target = batch
        self._optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(x), target)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())


def made(name: str) -> tuple[nn.Module, list[Batch]]:
    """The network and the batches of one comparison, the same in every process."""
    torch.manual_seed(0)
    make, batch = STEPS[name]
    return make(), [batch() for _ in range(2)]


def compare(name: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Times, losses and peak memory of one network, before and after."""
    model, batches = made(name)
    nudged = _nudged_losses(model, batches, min(JUDGED, rounds + 2))
    bare = _bare(copy.deepcopy(model))
    trainers = {"before": Trainer(model), "after": Trainer(evenly.convert(copy.deepcopy(model), fuse=True))}
    trainers["bare"] = Trainer(bare)
    losses: dict[str, list[float]] = {which: [] for which in trainers}
    times: dict[str, list[float]] = {which: [] for which in trainers}
    for turn in range(rounds + 2):
        names = list(trainers)
        first = turn % len(names)
        for which in names[first:] + names[:first]:
            start = perf_counter()
            losses[which].append(trainers[which](batches[turn % len(batches)]))
            if turn >= 2:  # the first steps warm allocators and caches
                times[which].append(perf_counter() - start)
    apart, allowed = _apart(losses["before"], losses["after"]), _apart(losses["before"], nudged)
    for step, (ours, own) in enumerate(zip(apart, allowed, strict=True), 1):
        if not ours <= max(LEAST, AGREE * own):
            raise SystemExit(
                f"{name}: at step {step} losses differ by {ours:.1e} of their value, "
                f"torch's own with nudged weights by {own:.1e}: no times."
            )
    faster, free = (
        [before / other for before, other in zip(times["before"], times[which], strict=True)]
        for which in ("after", "bare")
    )
    memory = {which: _peak(name, which) for which in ("before", "after")}
    return {
        "seconds": {which: vars(Spread.of(values)) for which, values in times.items()},
        "faster": vars(Spread.of(faster)),
        "faster_if_norms_were_free": vars(Spread.of(free)),
        "losses": {which: losses[which] for which in ("before", "after")},
        "losses_differ_by": apart[-1],
        "nudged_losses_differ_by": allowed[-1],
        "peak_mib": memory,
    }


def _bare(model: nn.Module) -> nn.Module:
    """``model`` without its norms and activations, in place: what is left of a step when they cost nothing."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6)):
                setattr(module, name, nn.Identity())
    return model


def _nudged_losses(model: nn.Module, batches: list[Batch], steps: int) -> list[float]:
    """The first losses of ``model``, which is left alone, from weights a little off."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + NUDGE * torch.randn_like(parameter))
    train = Trainer(model)
    return [train(batches[turn % len(batches)]) for turn in range(steps)]


def _apart(one: list[float], other: list[float]) -> list[float]:
    """How far two losses have been apart, in parts of their value, after each of the judged steps."""
    every = [abs(a - b) / abs(a) for a, b in zip(one[:JUDGED], other[:JUDGED], strict=True)]
    return [max(every[: step + 1]) for step in range(len(every))]


def _peak(name: str, which: str) -> float:
    """MiB that two steps add to the process at their peak."""
    answer = subprocess.run(
        [sys.executable, __file__, "--memory-of", name, which], capture_output=True, text=True, check=True
    )
    return float(answer.stdout.split()[-1])


def _measure_memory(name: str, which: str) -> float:
    model, batches = made(name)
    if which == "after":
        evenly.convert(model, fuse=True)
    train = Trainer(model)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for batch in batches:
        train(batch)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """MiB of this process's memory, now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"this system does not tell {field}; peak memory is measured on Linux.")


def markdown(found: dict[str, Any]) -> str:
    """The table of a results file, for ``docs/benchmarks.md``."""
    lines = [
        "| network | before, ms | after, ms | faster | were norms free | peak memory, MiB | losses differ by "
        "| nudged, torch's own |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found["rows"].items():
        before, after = (1000 * row["seconds"][which]["median"] for which in ("before", "after"))
        faster, free = row["faster"], row["faster_if_norms_were_free"]["median"]
        memory = f"{row['peak_mib']['before']:.0f} → {row['peak_mib']['after']:.0f}"
        lines.append(
            f"| {name} | {before:.0f} | {after:.0f} | **{faster['median']:.2f}×** "
            f"({faster['low']:.2f}–{faster['high']:.2f}) | {free:.2f}× | {memory} | {row['losses_differ_by']:.0e} | "
            f"{row['nudged_losses_differ_by']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=";".join(STEPS), help="networks: a;b")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", help="write the results")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(_measure_memory(*options.memory_of))
        return
    rows = {name: compare(name, options.rounds) for name in options.only.split(";")}
    found = {**results.collect([]), "study": "training_step", "rows": rows}
    print(markdown(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
