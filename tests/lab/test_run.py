"""Running cells: each kept as it finishes, none run twice, none lost to an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import altair as alt
import pytest
from rich.console import Console

import evenly
from evenly.lab import plots
from evenly.lab.cells import Store
from evenly.lab.data import Dataset
from evenly.lab.experiment import Cell, Experiment, Results, Values
from evenly.lab.experiments import EXPERIMENTS
from evenly.lab.judge import Verdict, at_least
from evenly.lab.plan import Plan, plan
from evenly.lab.report import Report
from evenly.lab.run import execute, finish, run
from evenly.lab.setting import Setting

ran: list[tuple[float, int]] = []


def tiny_settings(full: bool) -> list[Setting]:
    """Two rates."""
    return [Setting(rate=rate, steps=3, width=4) for rate in (0.1, 0.2)]


def tiny_measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """No training: what is tested is the running."""
    ran.append((setting.rate, seed))
    return {"accuracy": setting.rate + seed / 1000, "lost": float("nan")}


def tiny_judge(results: Results) -> list[Verdict]:
    """A claim that holds."""
    return [at_least("A <b>rate</b>", "mean", results.interval(lambda runs: runs[0].values["accuracy"]), 0.05)]


def tiny_charts(results: Results) -> list[plots.Chart]:
    """One chart, with a value that is not finite."""
    chart = alt.Chart(alt.InlineData(values=results.rows("accuracy", "lost")))
    chart = chart.mark_point().encode(x="rate:Q", y="accuracy:Q", color="lost:Q").properties(width="container")
    return [plots.Chart("tiny", "Tiny", "Nothing.", chart)]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[Experiment]:
    """An experiment of four cells that cost nothing, known by its name."""
    made = Experiment("tiny", "Does it run?", "Rates {rate}, {seeds} seeds.", tiny_settings, tiny_measure, tiny_judge,
                      tiny_charts, seeds=(2, 3))  # fmt: skip
    monkeypatch.setitem(EXPERIMENTS, "tiny", made)
    ran.clear()
    return made


QUIET = Console(quiet=True)


@pytest.mark.usefixtures("tiny")
def test_no_cell_runs_twice(tmp_path: Path) -> None:
    """A second run finds all four cells finished; one more seed adds two."""
    for seeds, total in [(None, 4), (None, 4), (3, 6)]:
        report = run("tiny", jobs=1, seeds=seeds, out=tmp_path)

        assert len(ran) == total
        assert len(report.sections[0].results) == total if seeds else 4


@pytest.mark.usefixtures("tiny")
def test_an_interruption_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third cell leaves two usable files; the next run does the other two only."""
    work = plan(["tiny"], jobs=1, out=tmp_path)

    def measure(setting: Setting, seed: int, data: Dataset) -> Values:
        if len(ran) == 2:
            raise KeyboardInterrupt
        return tiny_measure(setting, seed, data)

    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(EXPERIMENTS["tiny"], measure=measure))
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with pytest.raises(KeyboardInterrupt):
        execute(work, console)
    console.file.close()

    assert "2 of 4 cells are kept" in console.export_text()
    assert len(list((tmp_path / "cells" / "tiny").glob("*.json"))) == 2
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(EXPERIMENTS["tiny"], measure=tiny_measure))
    finish(work, QUIET)
    assert len(ran) == 4
    assert len(set(ran)) == 4


@pytest.mark.usefixtures("tiny")
def test_a_damaged_cell_is_run_again(tmp_path: Path) -> None:
    """Half a file counts as not finished."""
    run("tiny", jobs=1, out=tmp_path)
    damaged = sorted((tmp_path / "cells" / "tiny").glob("*.json"))[0]
    damaged.write_text(damaged.read_text()[:-20])
    run("tiny", jobs=1, out=tmp_path)

    assert len(ran) == 5


def test_a_cell_depends_on_code_data_and_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed by other code, on other numbers or with another setting is not found."""
    store = Store.create(tmp_path)
    cell = Cell("paper", Setting(data="digits"), 0)
    store.write(cell, {"accuracy": 0.5})

    found = store.read(cell)
    assert found is not None
    assert found.values == {"accuracy": 0.5}
    others = [
        replace(cell, seed=1),
        replace(cell, experiment="inference"),
        replace(cell, setting=Setting(data="digits", rate=0.2)),
        replace(cell, setting=Setting(data="breast_cancer")),
    ]
    for other in others:
        assert store.read(other) is None
    monkeypatch.setattr("evenly.lab.sources.installed", lambda: ("edited",))
    assert store.read(cell) is None


def short(work: Plan, cells: int, steps: int) -> Plan:
    """The first cells of ``work``, with few steps."""
    return replace(work, cells=tuple(replace(c, setting=replace(c.setting, steps=steps)) for c in work.cells[:cells]))


def test_processes_agree_with_one(tmp_path: Path) -> None:
    """Two processes write the same numbers to the last digit as a run in this process."""
    texts = []
    for jobs in (1, 2):
        work = short(plan(["initialization"], jobs=jobs, out=tmp_path / str(jobs)), cells=3, steps=4)
        finish(work, QUIET)
        texts.append({path.name: path.read_text() for path in (tmp_path / str(jobs)).rglob("*.json")})

    assert len(texts[0]) == 3
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("tiny")
def test_the_report_is_one_page_without_addresses(tmp_path: Path) -> None:
    """The page holds everything, escapes what it quotes, names no NaN, fetches nothing, and is small."""
    report = run("tiny", jobs=1, out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)

    assert "A &lt;b&gt;rate&lt;/b&gt;" in page
    assert "Rates 0.1, 0.2, 2 seeds." in page
    assert not re.search(r"""(?:src|link[^>]+href)=["'](?!#|data:)""", ours)  # links to papers fetch nothing
    assert 'href="https://arxiv.org/abs/1502.03167"' in ours
    assert '<nav id="contents"' in ours
    assert '<a href="#tiny">Does it run?</a>' in ours
    assert "Of 1 claim about normalization, 1 holds in these measurements." in ours
    assert re.search(r'role="img" aria-label="Tiny\. A &lt;b&gt;rate&lt;/b&gt;: holds, mean 0\.1', ours)
    assert f"evenly {evenly.__version__}" in ours
    assert "NaN" not in page.split("const CHARTS =")[1].split("</script>")[0]
    assert len(page.encode()) < 3_000_000
    assert (tmp_path / "charts" / "tiny.svg").read_text().startswith("<svg")
    assert (tmp_path / "charts" / "tiny.png").read_bytes()[1:4] == b"PNG"
    assert json.loads((tmp_path / "claims.json").read_text())[0]["outcome"] == "holds"
    assert report.verdicts[0].outcome == "holds"


@pytest.mark.usefixtures("tiny")
def test_results_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    """Report, section, results, verdict and chart each have a rich display."""
    report: Report = run("tiny", jobs=1, out=tmp_path)
    section = report.sections[0]

    for shown in (report, section, section.results, section.verdicts[0]):
        assert "<" in shown._repr_html_()
    assert section.charts[0]._repr_mimebundle_()


@pytest.mark.usefixtures("tiny")
def test_the_budget_is_stated_before_the_run(tmp_path: Path) -> None:
    """The first line says how many cells, on how many jobs, and about how long."""
    with open("/dev/null", "w") as nothing:
        console = Console(record=True, width=200, file=nothing)
        execute(plan(["tiny"], jobs=1, out=tmp_path), console)

    assert re.match(r"1 experiment, 4 cells to run on 1 job: about \d+ s", console.export_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["papre"]}, r"unknown experiment 'papre'; known are distributions, paper,"),
        ({"data": "cifar"}, "unknown data 'cifar'"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"jobs": -2}, "--jobs must be at least 1, got -2"),
        ({"engine": "spark"}, "unknown engine 'spark'; known are local, ray, dask"),
        ({"model": "torch.nn:Tanh"}, "has no norm layer"),
        ({"names": ["paper"], "model": f"{__name__}:wrong_shape"}, "must answer digits with scores of shape"),
        ({"model": f"{__name__}:wrong_shape"}, r"must answer digits with scores of shape \(4, 10\), got \(4, 3\)"),
        ({"model": f"{__name__}:wrong_input"}, "does not take digits's samples of shape"),
    ],
)
def test_refuses_what_cannot_run(tmp_path: Path, options: dict[str, object], message: str) -> None:
    """Unknown names, bad numbers and networks that do not fit are named before anything runs."""
    with pytest.raises(ValueError, match=message):
        plan(**{"out": tmp_path, **options})  # type: ignore[arg-type]


def wrong_shape() -> object:
    """A network with too few classes."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))


def wrong_input() -> object:
    """A network for another width."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10), nn.BatchNorm1d(10))


def test_refuses_a_folder_it_cannot_write(tmp_path: Path) -> None:
    """A file where the folder should be is named, with the option that helps."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*taken.*; name another folder with --out"):
        plan(["paper"], out=tmp_path / "taken")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "ray"])
@pytest.mark.filterwarnings("ignore")  # the engines' own, which change by release
def test_a_cluster_agrees_with_this_process(tmp_path: Path, engine: str) -> None:
    """A local Dask or Ray cluster, through joblib's own backends, writes the same numbers to the last digit."""
    pytest.importorskip({"dask": "distributed", "ray": "ray"}[engine], reason=f"{engine} is not installed")
    texts = []
    for where in ("local", engine):
        work = plan(["initialization"], jobs=1 if where == "local" else 2, engine=where, out=tmp_path / where)
        finish(short(work, cells=3, steps=4), QUIET)
        texts.append({path.name: path.read_text() for path in (tmp_path / where).rglob("*.json")})

    assert len(texts[0]) == 3
    assert texts[0] == texts[1]
