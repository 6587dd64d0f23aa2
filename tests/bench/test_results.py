"""The results file: its schema, the weighted sums, and the tables made from it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evenly.bench import picture, results, run, table, timing
from evenly.bench.shapes import Case


def times(forward: float, backward: float, copy: float) -> timing.Times:
    """Times of a peer that always takes the same."""
    parts = {"forward": forward, "backward": backward, "both": forward + backward}
    return timing.Times(
        {part: timing.Spread(value, 0.9 * value, 1.2 * value) for part, value in parts.items()},
        {part: timing.Spread(value / copy, 0.9 * value / copy, 1.2 * value / copy) for part, value in parts.items()},
    )


def rows() -> list[run.Row]:
    """Two cases, occurring 3 times and once; the second is refused to the peer called bad."""
    large, small = Case("batch", (8, 4, 6, 6), times=3), Case("group", (8, 4, 3, 3), residual=True)
    first = run.Row(large, copy_cold=times(2.0, 0.0, 2.0))
    first.peers["evenly"] = run.Measured(1e-7, 2e-4, cold=times(2.0, 4.0, 2.0))
    first.peers["bad"] = run.Measured(2e-7, float("inf"), cold=times(10.0, 20.0, 2.0))
    second = run.Row(small, copy_cold=times(1.0, 0.0, 1.0))
    second.peers["evenly"] = run.Measured(1e-7, 2e-4, cold=times(1.0, 1.0, 1.0))
    second.peers["bad"] = run.Measured(0.5, float("inf"), "wrong result")
    return [first, second]


@pytest.fixture
def found() -> results.Results:
    """Results of the two rows."""
    return results.collect(rows(), shapes="made up", dtype="float32", layout="first")


def test_the_sum_weighs_each_case_by_how_often_it_occurs(found: results.Results) -> None:
    """(3 * 6 + 1 * 2) seconds over (3 * 2 + 1 * 1) of copies; peers are compared where both ran."""
    ours, bad = found["sums"]["cold"]["evenly"], found["sums"]["cold"]["bad"]

    assert ours["both"]["copies"] == pytest.approx(20 / 7)
    assert ours["both"]["low"] == pytest.approx(0.9 * 20 / 7)
    assert ours["both"]["high"] == pytest.approx(1.2 * 20 / 7)
    assert ours["forward"]["copies"] == pytest.approx(7 / 7)
    assert ours["both"]["cases"] == 2
    assert bad["both"]["copies"] == pytest.approx(90 / 6)
    assert bad["both"]["slower"] == pytest.approx(30 / 6)
    assert bad["both"]["cases"] == 1
    assert "warm" not in found["sums"]


def test_a_file_says_what_was_run_where_and_with_which_versions(found: results.Results, tmp_path: Path) -> None:
    """Schema, time, commit, machine, settings, rows and sums; strict JSON; read back the same."""
    file = tmp_path / "results.json"
    results.write(found, file)

    assert set(found) == {"schema", "when", "commit", "machine", "settings", "rows", "sums"}
    assert {"torch", "python", "processor", "threads", "kernels", "last-level cache"} <= set(found["machine"])
    assert found["rows"][0]["case"]["times"] == 3
    assert found["rows"][1]["peers"]["bad"] == {
        "error": 0.5, "error_offset": "inf", "refused": "wrong result", "cold": None, "warm": None,
    }  # fmt: skip
    json.loads(file.read_text(), parse_constant=pytest.fail)
    assert results.read(file) == found


@pytest.mark.parametrize("content", ["[]", '{"schema": 99}'])
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    """The message says what the file should have been."""
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"is no results file of schema 1"):
        results.read(file)


def test_a_markdown_table_can_be_made_from_a_file(found: results.Results) -> None:
    """A row for each case, its peers and errors, then the sum and the ratio to evenly."""
    assert results.markdown(json.loads(json.dumps(found))).splitlines() == [
        "| shape | times | evenly | bad | error | error at mean 1e4 |",
        "|---|---:|---:|---:|---:|---:|",
        "| 8×4×6×6 | 3 | 3.0 | 15.0 | 1e-07 | 2e-04 |",
        "| group 8×4×3×3 +residual | 1 | 2.0 | refused | 1e-07 | 2e-04 |",
        "| **weighted sum** |  | **2.86** | **15.00** |  |  |",
        "| time, evenly's = 1 |  | 1.0× | 5.0× |  |  |",
    ]


def test_the_printed_table_shows_error_and_spread_beside_each_time(found: results.Results) -> None:
    """Median, quartiles, parts and both errors; a refusal with its reason and no time."""
    console = Console(width=160, file=io.StringIO(), record=True)
    table.show(found, console)
    text = console.export_text()

    assert "3.00 (2.70–3.60)" in text
    assert "1.00 + 2.00" in text
    assert "err 1e-07, 2e-04" in text
    assert "err 2e-07, NaN" in text
    assert "bad: wrong result (group 8×4×3×3 +residual)" in text
    assert "5.00× evenly's time" in text


def test_the_picture_has_a_bar_for_each_time(found: results.Results, tmp_path: Path) -> None:
    """Three peers ran, so three bars; the file is an SVG that names them."""
    pytest.importorskip("altair", reason="the picture needs the report extra")
    pytest.importorskip("vl_convert", reason="the picture needs the report extra")
    chart: dict[str, Any] = picture.chart(found).to_dict()
    values = chart["layer"][0]["data"]["values"] if "data" in chart["layer"][0] else chart["data"]["values"]
    picture.draw(found, tmp_path / "bench.svg")
    picture.draw(found, tmp_path / "bench.png")

    assert [(v["peer"], v["median"]) for v in values] == [("evenly", 3.0), ("bad", 15.0), ("evenly", 2.0)]
    svg = (tmp_path / "bench.svg").read_text()
    assert "evenly" in svg
    assert "8×4×6×6" in svg
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_another_kind_is_refused() -> None:
    """Before anything is measured."""
    with pytest.raises(ValueError, match=r"a picture is \.svg or \.png, got bench\.jpg"):
        picture.check(Path("bench.jpg"))
