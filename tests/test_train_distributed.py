"""The example that trains on several processes, started as its users start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import evenly

SCRIPT = Path(__file__).parents[1] / "examples" / "train_distributed.py"


def run(processes: int, *arguments: str) -> list[tuple[int, float, float]]:
    """Epoch, loss and accuracy of each line that is printed."""
    source = str(Path(evenly.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"epoch (\d+)/\d+  loss ([\d.]+)  accuracy ([\d.]+)", done.stdout)
    return [(int(epoch), float(loss), float(accuracy)) for epoch, loss, accuracy in lines]


def test_two_processes_and_a_resumed_run_learn_what_one_learns(tmp_path: Path) -> None:
    """Two processes, stopped after one epoch and resumed, print the losses of one process that ran through."""
    first = run(2, "--epochs", "1", "--checkpoint", str(tmp_path / "shared.pt"))
    resumed = run(2, "--epochs", "2", "--checkpoint", str(tmp_path / "shared.pt"))
    alone = run(1, "--epochs", "2", "--checkpoint", str(tmp_path / "alone.pt"))

    assert [epoch for epoch, *_ in first + resumed] == [1, 2]
    assert len(alone) == 2
    for (_, loss, accuracy), (_, loss_alone, accuracy_alone) in zip(first + resumed, alone, strict=True):
        assert abs(loss - loss_alone) <= 0.01 * loss_alone + 1e-4  # float32 sums in another order, two epochs long
        assert abs(accuracy - accuracy_alone) <= 2 / 360
    assert alone[-1][2] > 0.93
