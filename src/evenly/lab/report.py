"""The report: claims first, then one section per experiment, in one page that opens offline."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from evenly.lab.experiment import Experiment, Results
from evenly.lab.judge import Verdict
from evenly.lab.lesson import STATEMENTS
from evenly.lab.plots import Chart
from evenly.lab.questions import DEFAULT
from evenly.tools import files, names
from evenly.tools.report import visible_text

PAGE = Path(__file__).parent / "page"
MARKS = {"holds": "✓", "does not hold": "✗", "cannot tell": "?"}
AGAINST = {"does not hold": "turn out the other way", "cannot tell": "cannot be told from so few runs"}
STYLES = {"holds": "green", "does not hold": "red", "cannot tell": "yellow"}
SAVED_WIDTH = 560
SAVED = {
    "view": {"stroke": None}, "axis": {"titleFontWeight": "normal", "gridColor": "#E3E6EA", "labelFontSize": 12,
    "titleFontSize": 13}, "legend": {"orient": "top", "labelFontSize": 12, "labelLimit": 320},
}  # fmt: skip
PAPERS = (
    ("Ioffe and Szegedy 2015: Batch Normalization", "https://arxiv.org/abs/1502.03167"),
    ("Ba, Kiros and Hinton 2016: Layer Normalization", "https://arxiv.org/abs/1607.06450"),
    ("Ulyanov, Vedaldi and Lempitsky 2016: Instance Normalization", "https://arxiv.org/abs/1607.08022"),
    ("Ioffe 2017: Batch Renormalization", "https://arxiv.org/abs/1702.03275"),
    ("Wu and He 2018: Group Normalization", "https://arxiv.org/abs/1803.08494"),
    ("Santurkar, Tsipras, Ilyas and Madry 2018: How Does Batch Normalization Help Optimization?",
     "https://arxiv.org/abs/1805.11604"),
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One experiment's part of the report.

    Args:
        name: of the experiment.
        question: what was asked.
        how: how it was run.
        rerun: the command that runs it again.
        verdicts: what came out.
        charts: what was seen.
        results: the cells behind it.
    """

    name: str
    question: str
    how: str
    rerun: str
    verdicts: tuple[Verdict, ...]
    charts: tuple[Chart, ...]
    results: Results

    @classmethod
    def of(cls, experiment: Experiment, results: Results, rerun: str) -> Section:
        """Judge finished cells and draw them."""
        verdicts = tuple(experiment.judge(results))
        found = " ".join(f"{v.claim}: {v.outcome}, {v.about} {v.interval}." for v in verdicts)
        charts = tuple(replace(c, finding=c.finding or f"{c.title}. {found}") for c in experiment.charts(results))
        return cls(
            experiment.name, experiment.question, experiment.told(results), rerun, verdicts, charts, results
        )  # fmt: skip

    def seen(self) -> list[str]:
        """What was seen, one sentence per claim, made of the measured numbers."""
        return [f"{v.about[0].upper()}{v.about[1:]}: {v.measured}." for v in self.verdicts]

    def _repr_html_(self) -> str:
        return f"<h3>{names.markup(self.question)}</h3><p>{names.markup(self.how)}</p>" + "".join(
            v._repr_html_() for v in self.verdicts
        )


@dataclass(frozen=True)
class Report:
    """Everything a run of the lab has to say.

    Args:
        sections: one per experiment.
        data: the data sets used, described.
        command: what to type to get it again.
    """

    sections: tuple[Section, ...]
    data: tuple[str, ...]
    command: str

    @property
    def leading(self) -> list[tuple[Section, Verdict]]:
        """The claims of the table: after the lesson's run one for each of its statements, otherwise all."""
        every = [(section, verdict) for section in self.sections for verdict in section.verdicts]
        if {section.name for section in self.sections} != set(DEFAULT):
            return every
        known = {(section.name, verdict.claim): (section, verdict) for section, verdict in every}
        return [known[s.experiment, s.claim] for s in STATEMENTS]

    @property
    def conclusion(self) -> str:
        """What came out, in one sentence."""
        counts = {outcome: sum(v.outcome == outcome for _, v in self.leading) for outcome in MARKS}
        claims = f"{len(self.leading)} claim{'' if len(self.leading) == 1 else 's'}"
        hold = f"{counts['holds']} {'holds' if counts['holds'] == 1 else 'hold'}"
        held = f"Of {claims} about normalization, {hold} in these measurements"
        rest = [f"{counts[o]} {words}" for o, words in AGAINST.items() if counts[o]]
        return f"{', '.join([held, *rest])}."

    @property
    def verdicts(self) -> list[Verdict]:
        """All verdicts, in the order of the report."""
        return [verdict for section in self.sections for verdict in section.verdicts]

    def table(self) -> Table:
        """The claims for a terminal."""
        table = Table(title="Claims", title_justify="left", show_lines=True)
        for heading in ("claim", "verdict", "measured"):
            table.add_column(heading, overflow="fold")
        for _, v in self.leading:
            style = STYLES[v.outcome]
            claim, about = (escape(names.visible(text, None)) for text in (v.claim, v.about))
            table.add_row(claim, f"[{style}]{MARKS[v.outcome]} {v.outcome}[/]", f"{about}: [bold]{v.measured}[/]")
        return table

    def save(self, folder: Path) -> Path:
        """Write ``report.html``, the charts as PNG and SVG, claims and command as JSON; return the page's path."""
        path = folder / "report.html"
        files.write(path, self.to_html())
        about = {"command": self.command, "data": self.data}
        for name, record in (("claims", self.claims()), ("lab", about)):
            files.write(folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        pictures = folder / "charts"
        pictures.mkdir(exist_ok=True)
        for section in self.sections:
            for chart in section.charts:
                save_picture(chart, pictures)
        return path

    def claims(self) -> list[dict[str, Any]]:
        """The table of claims as plain records."""
        return [
            {
                "experiment": section.name, "question": section.question, "claim": v.claim, "outcome": v.outcome,
                "about": v.about, "measured": str(v.interval), "seeds": v.interval.seeds, "exact": v.exact,
                "rule": v.rule,
            }
            for section in self.sections
            for v in section.verdicts
        ]  # fmt: skip

    def to_html(self) -> str:
        """The page: styles, scripts and data inside, nothing fetched."""
        import jinja2
        import vl_convert

        import evenly

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
            finalize=visible_text,
        )  # fmt: skip
        charts = {
            chart.name: {
                "spec": names.shown_everywhere(_finite(chart.chart.to_dict())),
                "slider": chart.slider and {"parameter": chart.slider.parameter, "labels": chart.slider.labels},
            }
            for section in self.sections
            for chart in section.charts
        }
        return environment.get_template("report.html.j2").render(
            report=self, marks=MARKS, versions={"evenly": evenly.__version__, **_versions()}, papers=PAPERS,
            today=date.today().isoformat(),
            style=(PAGE / "report.css").read_text(), script=(PAGE / "report.js").read_text(),
            vega=_inside_script(vl_convert.javascript_bundle()),  # type: ignore[call-arg]
             charts=json.dumps(charts).replace("<", "\\u003C"),
        )  # fmt: skip

    def _repr_html_(self) -> str:
        return "".join(section._repr_html_() for section in self.sections)


def save_picture(chart: Chart, folder: Path) -> None:
    """The chart as ``folder/name.svg`` and ``folder/name.png``."""
    import vl_convert

    spec = names.shown_everywhere(_finite(chart.chart.to_dict()))
    spec["width"] = SAVED_WIDTH
    spec["background"] = "white"
    spec["padding"] = 8
    spec["config"] = {**spec.get("config", {}), **SAVED}
    name = re.sub(r"[^\w.-]", "-", chart.name)  # a MODULE:FACTORY may stand in it
    files.write(folder / f"{name}.svg", vl_convert.vegalite_to_svg(spec))
    files.write(folder / f"{name}.png", vl_convert.vegalite_to_png(spec, scale=2))


def _versions() -> dict[str, str]:
    import platform

    return {"Python": platform.python_version(), **{name: version(name) for name in ("torch", "altair")}}


def _finite(spec: Any) -> Any:
    """Five digits of each number; NaN and infinities of diverged runs as null, the only word JSON has for them."""
    if isinstance(spec, dict):
        return {key: _finite(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_finite(value) for value in spec]
    if isinstance(spec, float):
        return float(f"{spec:.5g}") if abs(spec) < 1e300 else None
    return spec


def _inside_script(text: str) -> str:
    """Text that cannot end the script element it stands in."""
    return text.replace("</script", "<\\/script")
