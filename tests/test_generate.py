"""Generated pages are in step with code and results, and the generator notices when they are not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = "# Title\n\n<!-- generated: {name} -->\nold\n<!-- end {name} -->\n\nafter\n"


@pytest.fixture
def generate() -> ModuleType:
    """`docs/generate.py`, which lies outside the package, as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_pages_are_in_step(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing generated differs from what code and committed results give today."""
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_part_is_named_and_mended(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check leaves the page alone and fails; a run writes the part and nothing else; a second check passes."""
    page = tmp_path / "README.md"
    page.write_text(PAGE.format(name="claims"))
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    record = {
        "experiment": "depth",
        "claim": "With batch normalization a network of 12 layers trains",
        "outcome": "holds",
        "about": "accuracy",
        "measured": "92.0 % [89.5, 94.5]",
        "seeds": 3,
    }
    (results / "lab_quick.json").write_text(json.dumps({"claims": [record]}))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {})

    assert generate.main(["--check"]) == 1
    assert "stale: README.md" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert generate.main([]) == 0
    assert (
        "| With batch normalization a network of 12 layers trains | ✓ holds | accuracy: 92.0 % [89.5, 94.5] | 3 |"
        in page.read_text()
    )
    assert page.read_text().endswith("<!-- end claims -->\n\nafter\n")
    assert generate.main(["--check"]) == 0


def test_an_unknown_part_is_refused(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt mark is an error that lists the parts there are."""
    (tmp_path / "README.md").write_text(PAGE.format(name="clams"))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {})

    with pytest.raises(SystemExit, match="no part is called 'clams'; known are claims, bench"):
        generate.main([])


def test_bench_table_has_a_row_for_each_run(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each committed run is one row: ours in copies, each peer in copies and in times of ours."""
    sums = {"evenly": {"both": {"copies": 2.9}}, "torch": {"both": {"copies": 17.3, "slower": 5.97}}}
    sums["kernels"] = {"both": {"copies": 2.6, "slower": 0.9}}  # ours, too: no peer of the table
    settings = {"shapes": "resnet50", "layout": "first", "dtype": "float32", "residual": False}
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "resnet50.json").write_text(json.dumps({"schema": 1, "settings": settings, "sums": {"cold": sums}}))
    (folder / "sync.json").write_text(json.dumps({"seconds": 1}))  # of another study: not a row
    monkeypatch.setattr(generate, "ROOT", tmp_path)

    assert generate.bench().splitlines()[2:] == [
        "| resnet50 | channels first, float32 | **2.90** | 17.30 (6.0× the time) |"
    ]
