"""Every command with every kind of bad input: one line, exit status 2, nothing written, nothing touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from evenly.cli import main

MODULES = {
    "raises.py": "1 / 0",
    "beside.py": "",
    "syntax.py": "def (",
    "leaves.py": "import sys; sys.exit(3)",
    "lacks.py": "import no_such_module_of_anyone",
    "lines.py": "raise RuntimeError('two\\nlines \\x1b[2J')",
    "good.py": (
        "import beside\nimport torch\nfrom torch import nn\n"
        "def model(): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))\n"
        "def data(): return [(torch.randn(8, 3), torch.randint(0, 4, (8,))) for _ in range(4)]\n"
        "def broken(): raise KeyError('no such layer')\ndef number(): return 3\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))\n"
    ),
}
OF_FILES = ("no.pt", "folder", "empty.pt", "broken.json", "text.pt", "number.pt")
DIAGNOSE = ["diagnose", "good:model", "--data", "good:data"]
TABLE = {
    **{f"xray {name}": ["xray", name] for name in OF_FILES if name != "folder"},  # a folder is surveyed
    **{f"diagnose --weights {name}": [*DIAGNOSE, "--weights", name] for name in OF_FILES},
    "xray --json onto the file": ["xray", "good.pt", "--json", "good.pt"],
    "xray --html onto the file by a link": ["xray", "good.pt", "--html", "link.pt"],
    "xray --html and --json alike": ["xray", "good.pt", "--html", "x", "--json", "./x"],
    "xray --json into no folder": ["xray", "good.pt", "--json", "no/x.json"],
    "xray --html onto a folder": ["xray", "good.pt", "--html", "folder"],
    "diagnose --fix onto the file": [*DIAGNOSE, "--weights", "good.pt", "--fix", "good.pt"],
    "diagnose --fix onto a hard link": [*DIAGNOSE, "--weights", "good.pt", "--fix", "hard.pt"],
    "diagnose --json onto the file": [*DIAGNOSE, "--weights", "good.pt", "--json", "good.pt"],
    "diagnose --json onto the module": [*DIAGNOSE, "--json", "good.py"],
    "diagnose --html onto the module": [*DIAGNOSE, "--html", "good.py"],
    "diagnose --json onto what the module imports": [*DIAGNOSE, "--json", "beside.py"],
    "diagnose --fix and --json alike": [*DIAGNOSE, "--weights", "good.pt", "--fix", "b.pt", "--json", "b.pt"],
    "diagnose --fix into no folder": [*DIAGNOSE, "--weights", "good.pt", "--fix", "no/b.pt"],
    "diagnose other weights": [*DIAGNOSE, "--weights", "other.pt"],
    **{
        f"diagnose {place}": ["diagnose", place, "--data", "good:data"]
        for place in (
            "good", "good:", ":model", "good:nothing", "nowhere:model", "raises:model", "syntax:model", "leaves:model",
            "lacks:model", "lines:model", "good:broken", "good:number", "good.model:x", "..good:model", "good:model.x",
        )
    },
    **{
        f"diagnose --data {place}": ["diagnose", "good:model", "--data", place]
        for place in ("good", "good:nothing", "raises:x", "good:broken", "good:number")
    },
    "diagnose --loss": [*DIAGNOSE, "--loss", "good:nothing"],
    "diagnose --limit": [*DIAGNOSE, "--limit", "0"],
    **{
        f"lab --model {place}": ["lab", "inference", "--model", place, "--jobs", "1"]
        for place in (
            "good", "good:nothing", "nowhere:net", "raises:net", "syntax:net", "leaves:net", "lacks:net", "lines:net",
            "good:broken", "good:number", "good:model",
        )
    },
    **{
        f"lab --data {name}": ["lab", "inference", "--data", name]
        for name in ("cifar", "no.npz", "folder.npz", "empty.npz", "text.npz", "bomb.npz", "good.pt")
    },
    "lab of nothing known": ["lab", "papre"],
    "lab --seeds": ["lab", "--seeds", "0"],
    "lab --jobs": ["lab", "--jobs", "x"],
    "lab --out onto a file": ["lab", "--out", "good.py"],
    "lab --out with a folder in a page's place": ["lab", "--out", "pages"],
    "bench --json into no folder": ["bench", "--quick", "--json", "no/x.json"],
    "bench --json and --picture alike": ["bench", "--quick", "--json", "x.svg", "--picture", "x.svg"],
    "bench --json onto a folder": ["bench", "--quick", "--json", "folder"],
    "bench --picture of another kind": ["bench", "--quick", "--picture", "x.bmp"],
    "bench of no list": ["bench", "--shapes", "resnet5000"],
    "bench of no peer": ["bench", "--peers", "nobody"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every input of the table."""
    import zipfile

    folder = tmp_path_factory.mktemp("inputs")
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(), folder / "good.pt")
    torch.save(nn.Linear(5, 5).state_dict(), folder / "other.pt")
    torch.save(3, folder / "number.pt")
    (folder / "link.pt").symlink_to("good.pt")
    os.link(folder / "good.pt", folder / "hard.pt")
    for name in ("folder", "folder.npz", "pages/report.html"):
        (folder / name).mkdir(parents=True)
    for name, text in {
        "empty.pt": "",
        "empty.npz": "",
        "text.pt": "a\nb\n",
        "text.npz": "a",
        "broken.json": "{",
    }.items():
        (folder / name).write_text(text)
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (50000000,)}"
        file.writestr(
            "x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(200_000_000)
        )
    return folder


def _state(folder: Path) -> dict[str, object]:
    """What lies in the folder."""
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize("situation", TABLE)
def test_bad_input_is_one_line_and_status_2(folder: Path, monkeypatch: pytest.MonkeyPatch, situation: str) -> None:
    """What is wrong, in one line of visible signs on the error stream; every file is as it was, and none is new."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)
    before = _state(folder)

    result = CliRunner().invoke(main, TABLE[situation], prog_name="evenly")

    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.rstrip("\n").isprintable()
    after = _state(folder)
    made = {
        path for path in after.keys() - before.keys() if not path.endswith(("lab-out", "lab-out/cells", "pages/cells"))
    }
    assert not made
    assert {path: after[path] for path in before} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    """A file without permission is named, with the reason."""
    (path := folder / "closed.pt").write_bytes(b"")
    path.chmod(0)

    result = CliRunner().invoke(main, ["xray", str(path)])

    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "arguments", [["info"], ["info", "--json"], ["explain"], ["xray", "good.pt"], ["lab", "--list"]]
)
def test_a_full_disk_behind_the_output_is_one_line(folder: Path, arguments: list[str]) -> None:
    """`evenly info > /dev/full`, and a file that has no room: one line, status 2."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "evenly.cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder
        )

    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left" in done.stderr


def test_a_page_that_has_no_room_leaves_none(folder: Path) -> None:
    """`--json` and `--html` on a full disk: one line, status 2, no stump."""
    script = (
        "import resource, signal\nfrom evenly.cli import main\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\nmain()"
    )
    before = _state(folder)
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, "xray", "good.pt", "--json", "x.json"],
        capture_output=True,
        text=True,
        cwd=folder,
    )

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert _state(folder) == before
