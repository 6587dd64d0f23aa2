"""`evenly lab` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from evenly.cli import main
from evenly.lab import command
from evenly.lab.experiments import DEFAULT, EXPERIMENTS


def test_list_names_every_question() -> None:
    """`evenly lab --list` shows each experiment with its question, and which run by default."""
    shown = CliRunner().invoke(main, ["lab", "--list"])

    assert shown.exit_code == 0
    for experiment in EXPERIMENTS.values():
        assert experiment.name in shown.output
    assert shown.output.count("yes") == len(DEFAULT)


def test_list_needs_no_extra() -> None:
    """Without Altair, jinja2, joblib, and without torch, the list is shown all the same."""
    absent = "; ".join(f"sys.modules[{name!r}] = None" for name in (*command.EXTRA, "torch"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {absent}; from evenly.cli import main; main(['lab', '--list'])"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "learning_rate" in done.stdout


def test_the_shell_completes_experiments() -> None:
    """A half-typed experiment is completed; one that is typed already is not offered again."""
    argument = next(p for p in main.commands["lab"].params if p.name == "experiments")
    offered = {
        word: [item.value for item in argument.shell_complete(click.Context(main.commands["lab"]), word)]
        for word in ("de", "b", "")
    }
    typed = click.Context(main.commands["lab"])
    typed.params["experiments"] = ("bias",)

    assert offered["de"] == ["depth"]
    assert offered["b"] == ["bias", "batch_size"]
    assert offered[""] == list(EXPERIMENTS)
    assert [item.value for item in argument.shell_complete(typed, "b")] == ["batch_size"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown experiment 'nonsense'; known are distributions"),
        (["--data", "no.npz"], "no file no.npz"),
        (["--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Bad input ends with status 2 and one line that says what to do; nothing is run."""
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    result = CliRunner().invoke(main, ["lab", *arguments, *out])

    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_absent_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the lab extra, and without the asked engine, one line says what to install."""
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name in ("altair", "ray") else find(name)
    )
    with pytest.raises(ImportError, match=r"the lab needs altair; pip install 'evenly\[lab\]'"):
        command.require_extra()
    monkeypatch.setattr(command, "EXTRA", ())
    with pytest.raises(ValueError, match="--engine ray needs ray; pip install 'ray'"):
        command.checked([], engine="ray", out=tmp_path)


def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """Ctrl-C, which reaches every process of the terminal, keeps finished cells: status 130, no traceback."""
    # A terminal's process minds Ctrl-C; one that the tests start in the background would not. Set by the process
    # itself: to run code between fork and exec is more than other people's threads (JAX's) allow.
    minding = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv[0] = 'evenly'; runpy.run_module('evenly.cli', run_name='__main__')"
    )
    words = [sys.executable, "-c", minding, "lab", "inference", "--jobs", "2", "--out", str(tmp_path)]
    started = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip
    cells = tmp_path / "cells" / "inference"
    while not list(cells.glob("*.json")) and started.poll() is None:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=120)[0]

    assert started.returncode == 130, said
    assert "cells are kept" in " ".join(said.split())
    assert "Traceback" not in said
    assert all(json.loads(path.read_text())["values"] for path in cells.glob("*.json"))
