"""What cells depend on: the user's code as it was really imported, evenly's own, the file as it was written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from evenly.lab import sources
from evenly.lab.cells import Store
from evenly.lab.experiment import Cell
from evenly.lab.plan import plan
from evenly.lab.run import finish, run_cell
from evenly.lab.setting import Setting

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
    def forward(self, x):
        return self.b(torch.relu(self.n(self.a(x.flatten(1)))))
"""
# Where the class may live, and how the module that is named gets at it.
PLACES = {
    "the module itself": ({"mynets.py": NET + "\ndef small(): return Net()\n"}, "mynets:small", "mynets.py"),
    "an imported file": (
        {"helper.py": NET, "mynets.py": "from helper import Net as small\n"}, "mynets:small", "helper.py",
    ),
    "a file imported there": (
        {"deep.py": NET, "helper.py": "from deep import *\n", "mynets.py": "from helper import Net as small\n"},
        "mynets:small", "deep.py",
    ),
    "a package": (
        {"pack/__init__.py": "", "pack/inner/__init__.py": "", "pack/inner/net.py": NET,
         "pack/nets.py": "from .inner.net import Net as small\n"}, "pack.nets:small", "pack/inner/net.py",
    ),
    "a file imported in the factory": (
        {"late.py": NET, "mynets.py": "def small():\n    import late\n    return late.Net()\n"},
        "mynets:small", "late.py",
    ),
    "a file imported by its name": (
        {"late.py": NET, "mynets.py": "def small():\n return __import__('la' + 'te').Net()\n"},
        "mynets:small", "late.py",
    ),
    "a folder beside": (
        {"../lib/far.py": NET, "mynets.py": "import sys\nsys.path.append('../lib')\nfrom far import Net as small\n"},
        "mynets:small", "../lib/far.py",
    ),
}  # fmt: skip


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; modules imported meanwhile are forgotten afterwards."""
    (folder := tmp_path / "here").mkdir()
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits within a second are one to the cache
    yield folder
    _forget(tmp_path)


def _forget(folder: Path) -> None:
    """As a new process would find things: nothing from here is imported yet."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    sources._seen.clear()


def _cells(model: str, out: Path) -> tuple[int, int]:
    """How many cells there are, and how many are still to run; all are finished then."""
    work = plan(["inference"], model=model, seeds=1, jobs=1, out=out)
    todo = work.unfinished()
    for cell in todo:
        work.store.write(cell, {"accuracy": 1.0})
    return len(work.cells), len(todo)


@pytest.mark.parametrize("place", PLACES)
def test_cells_run_again_when_the_code_behind_a_network_changed(afresh: Path, place: str) -> None:
    """Wherever the changed file lies and however it was imported; unchanged, all are used again."""
    written, model, changed = PLACES[place]
    for name, text in written.items():
        (afresh / name).parent.mkdir(parents=True, exist_ok=True)
        (afresh / name).write_text(text)

    total, first = _cells(model, afresh / "o")
    _forget(afresh.parent)
    again = _cells(model, afresh / "o")[1]
    _forget(afresh.parent)
    (afresh / changed).write_text((afresh / changed).read_text().replace("torch.relu(", "0 * torch.relu("))
    after = _cells(model, afresh / "o")[1]

    assert (first, again, after) == (total, 0, total)


def test_code_that_changes_under_a_running_lab_is_an_error(afresh: Path) -> None:
    """The imported code is no longer the file's: whose numbers the next cells would be nobody could say."""
    (afresh / "mynets.py").write_text(NET)
    work = plan(["inference"], model="mynets:Net", seeds=1, jobs=1, out=afresh / "o")
    (afresh / "mynets.py").write_text(NET + "\n# edited\n")

    with pytest.raises(sources.ChangedError, match=r"mynets\.py changed after it was read; start again"):
        finish(work, Console(quiet=True))
    assert not list((afresh / "o").rglob("*.json"))


def test_a_worker_that_read_other_code_is_noticed(afresh: Path) -> None:
    """A process that started later, and imported the edited file, says which file it was."""
    (afresh / "mynets.py").write_text(NET)
    cell = plan(["inference"], model="mynets:Net", seeds=1, jobs=1, out=afresh / "o").cells[0]
    made_of = run_cell(Cell(cell.experiment, Setting(**{**vars(cell.setting), "steps": 1}), 0), os.getpid())[2]

    sources.check_same(made_of, dict(made_of))
    for path in made_of:
        with pytest.raises(sources.ChangedError):
            sources.check_same(made_of, {**made_of, path: "other"})
    assert {Path(p).name for p in made_of} >= {"mynets.py", "digits"}


def test_what_was_typed_into_a_notebook_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a file has no digest: its cells are good for this process and for no other."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)

    here = sources.users("__main__:small")
    monkeypatch.setattr(sources, "_SESSION", "another process")

    assert sources.users("__main__:small") != here


def test_evenlys_own_sources_and_kernels_are_a_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another kernel library, another file of ours, another choice of kernels: other cells."""
    (tmp_path / "nn").mkdir()
    (tmp_path / "_cpu.so").write_bytes(b"1")
    (tmp_path / "nn" / "batch.py").write_text("")
    monkeypatch.setattr(sources, "_OURS", tmp_path)
    found = [sources.installed.__wrapped__()]
    for path in ("_cpu.so", "nn/batch.py", "nn/new.py"):
        (tmp_path / path).write_bytes(b"2")
        found.append(sources.installed.__wrapped__())
    monkeypatch.setenv("EVENLY_ISA", "x86-64-v2")
    found.append(sources.installed.__wrapped__())

    assert len(set(found)) == 5


def test_a_cell_edited_by_hand_is_not_used(tmp_path: Path) -> None:
    """A better number, another seed, a cell copied onto another's name, half a file: run again, and said so."""
    store = Store.create(tmp_path)
    cell, other = (Cell("paper", Setting(data="digits"), seed) for seed in (0, 1))
    for edit in ("accuracy", "seed", "copy", "half", "list"):
        store.write(cell, {"accuracy": 0.5, "lost": [float("nan"), 1.0]})
        store.write(other, {"accuracy": 0.4})
        path = store._path(cell)
        stored = json.loads(path.read_text())
        assert store.read(cell) is not None
        assert not store.spoiled(cell)
        if edit == "accuracy":
            stored["values"]["accuracy"] = 0.9
        elif edit == "seed":
            stored["seed"] = 7
        text = {"copy": store._path(other).read_text(), "half": path.read_text()[:-30], "list": "[]"}
        path.write_text(text.get(edit, json.dumps(stored)))

        assert store.read(cell) is None
        assert store.spoiled(cell)
