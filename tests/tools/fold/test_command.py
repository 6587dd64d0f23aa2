"""The command `evenly fold`: written files are run again, wrong use is one line, checks tell right from wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from evenly.cli import main

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    model = nn.Sequential(*layers)
    model(torch.randn(16, 3, 8, 8))
    return model
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module and its weights, and the command run in it."""
    (tmp_path / "foldnets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    torch.save(importlib.import_module("foldnets").build().state_dict(), "a.pt")
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit status, and all that was printed."""
    done = CliRunner().invoke(main, ["fold", *arguments])
    return done.exit_code, done.output + (done.stderr if done.exit_code else "")


MODEL = ("foldnets:build", "--weights", "a.pt", "--inputs", "1,3,8,8")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["pt2", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_what_is_written_is_run_again(folder: Path, form: str) -> None:
    """Each form is written with its certificate, and the check finds it to be the model."""
    status, out = run(*MODEL, "--out", f"b.{form}", "--json", "b.json", "--html", "b.html")

    assert status == 0, out
    assert "1 -> 0   norm after convolution" in out
    assert "run again" in out
    assert {p.name for p in folder.iterdir()} >= {f"b.{form}", "b.json", "b.html"}
    if form != "safetensors":
        status, out = run("--check", f"b.{form}", "a.pt", "foldnets:build", "--inputs", "2,3,8,8")
        assert status == 0, out
        assert out.strip().endswith("the same model")


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_fold_of_somebody_else_is_seen(folder: Path) -> None:
    """Weights that were moved a little give status 1."""
    assert run(*MODEL, "--out", "b.pt2")[0] == 0
    weights = torch.load("a.pt")
    weights["1.running_mean"] += 0.01
    torch.save(weights, "c.pt")
    status, out = run("--check", "b.pt2", "c.pt", "foldnets:build")

    assert status == 1
    assert "NOT the same model" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MODEL, "--out", "b.bin"), "ends in .pt2, .onnx, .safetensors"),
        ((*MODEL[:3], "--out", "b.pt2"), "--inputs 1,3,224,224"),
        ((*MODEL[:3], "--inputs", "3,x", "--out", "b.pt2"), "is no shape"),
        ((*MODEL, "--out", "taken.pt2"), "exists"),
        ((*MODEL, "--out", "b.pt2", "--json", "b.pt2"), "give each a file of its own"),
        ((*MODEL, "--out", "nowhere/b.pt2"), "cannot write nowhere"),
        (("foldnets:build",), "--out FILE.pt2"),
        (("--check", "a.pt"), "--check takes"),
        (("--check", "a.pt", "a.pt"), "holds weights"),
        (("--check", "none.onnx", "a.pt"), "there is no such file"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    """Nothing is written, nothing overwritten."""
    (folder / "taken.pt2").write_text("mine")
    before = {p.name for p in folder.iterdir()}
    status, out = run(*arguments)

    assert status == 2, out
    assert message in out
    assert (folder / "taken.pt2").read_text() == "mine"
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == before - {"__pycache__"}
