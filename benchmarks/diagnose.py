"""How long until `evenly.diagnose` says something of a ResNet-50, and until it has tried everything?

    python benchmarks/diagnose.py [SAMPLES]

Eight batches of SAMPLES (8) images of 224 x 224; one norm has lost its statistics, and another's are
far off: what is stored gives the first finding, the gap needs batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from benchmarks.networks import resnet50
from torch import nn

import evenly


def spoiled() -> nn.Module:
    """A ResNet-50 with the statistics of its inputs, but for two layers."""
    torch.manual_seed(0)
    model = resnet50()
    images = [torch.randn(8, 3, 224, 224) for _ in range(2)]
    evenly.recalibrate(model, images)
    norms = dict(evenly_norms(model))
    norms["layer3.0.bn1"].reset_running_stats()
    norms["layer4.1.bn2"].running_var *= 25
    return model.eval()


def evenly_norms(model: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """The batch norms by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))


def main(samples: int = 8) -> None:
    """Diagnose it and print the seconds of each event."""
    model = spoiled()
    batches = [torch.randn(samples, 3, 224, 224) for _ in range(8)]
    start = time.perf_counter()

    def say(line: str) -> None:
        if "error:" in line or "running statistics" in line:
            print(f"{time.perf_counter() - start:6.1f} s  {line.partition('] ')[2]}", flush=True)

    diagnosis = evenly.diagnose(model, batches, say=say)
    print(
        f"{time.perf_counter() - start:6.1f} s  all {len(diagnosis.trials)} trials; threads: {torch.get_num_threads()}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
