"""The lab's processes: none is left behind, and no cell is half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
PATIENCE = 120.0  # seconds until what should have happened has not

WORKER = (
    "import os, sys, time\nfrom evenly.lab import workers\n"
    "if {portable}: sys.platform = 'other'\n"
    "workers.begin(os.getppid())\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
)
PARENT = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {worker!r}])\ntime.sleep(600)\n"


def _children(pid: int) -> list[int]:
    """Processes that this one started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == pid and rest.split()[0] != "Z":
            found.append(int(name.split()[0]))
    return found


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _until(happened) -> bool:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not (done := happened()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(done)


@pytest.mark.parametrize("portable", [False, True])
def test_a_worker_does_not_outlive_its_parent(portable: bool) -> None:
    """kill -9 of the parent ends the worker: by the kernel's word on Linux, by looking elsewhere."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(worker=WORKER.format(portable=portable))],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(parent.stdout.readline())
    assert not _gone(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert _until(lambda: _gone(worker))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_lab_that_is_killed_or_interrupted_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """No process goes on, and every cell on the disk is whole."""
    command = [sys.executable, "-m", "evenly.cli", "lab", "--all", "--full", "--jobs", "2", "--out", str(tmp_path)]
    lab = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    assert _until(lambda: list(tmp_path.glob("cells/*/*.json")))
    workers = _children(lab.pid)
    os.killpg(lab.pid, how) if how == signal.SIGINT else lab.kill()
    lab.wait(PATIENCE)

    assert len(workers) >= 2
    assert _until(lambda: all(map(_gone, workers)))
    for cell in tmp_path.glob("cells/*/*.json"):
        assert json.loads(cell.read_text())["checksum"]
