"""``evenly bench``: what is asked for is checked first, then measured, printed and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from evenly.bench import main as bench_main
from evenly.bench import shapes
from evenly.bench.shapes import Case
from evenly.cli import main


def test_the_command_measures_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small list, quickly: a table on the screen, every row judged in the file."""
    monkeypatch.setitem(
        shapes.LISTS, "small", (lambda samples: [Case("batch", (6, 5)), Case("batch", (2, 3, 4, 4))], None)
    )
    file = tmp_path / "small.json"
    result = CliRunner().invoke(main, ["bench", "--shapes", "small", "--rounds", "1", "--quick", "--json", str(file)])

    assert result.exit_code == 0, result.output
    assert "evenly" in result.output
    assert "6×5" in result.output
    found = json.loads(file.read_text())
    assert found["settings"]["peers"] == ["torch"]
    assert [row["case"]["shape"] for row in found["rows"]] == [[6, 5], [2, 3, 4, 4]]
    for row in found["rows"]:
        for name in ("evenly", "torch"):
            assert 0 < row["peers"][name]["error"] < 1e-4
            assert row["peers"][name]["cold"]["seconds"]["both"]["median"] > 0
    assert set(found["sums"]["cold"]) == {"evenly", "torch"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "resnet"], "unknown list of shapes 'resnet'"),
        (["--peers", "tourch"], "unknown peer 'tourch'; known are evenly, kernels, torch"),
        (["--shapes", "small", "--batch", "4"], "the shapes of 'small' are fixed"),
        (["--shapes", "dense", "--layout", "last"], "no shape with channels last"),
        (["--json", "/no/such/folder/x.json"], "cannot write /no/such/folder/x.json"),
        (["--picture", "x.gif"], "a picture is .svg or .png"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is measured, and no file is left."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["bench", *options])
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_quick_takes_small_batches_and_few_rounds() -> None:
    """Eight samples where the list has more, its own number where it has fewer; cold only."""
    plan = bench_main.plan(shapes=["resnet50", "unet3d", "small"], peers=["torch"], quick=True)
    assert {case.shape[0] for case in plan.cases if case.shape[1:2] == (2048,)} == {8}
    assert {case.shape[0] for case in plan.cases if len(case.shape) == 5} == {2}
    assert plan.pace.rounds == 3
    assert not plan.warm
    assert plan.peers == ["evenly", "torch"]
