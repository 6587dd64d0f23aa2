"""The table that ``evenly bench`` prints, and the line below it."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from evenly.bench.results import Results, label


def render(results: Results, heat: str = "cold") -> Group:
    """The table of one run: each peer's time in copies of the tensor, forward + backward, its spread and its error."""
    names = list(dict.fromkeys(name for row in results["rows"] for name in row["peers"]))
    table = Table(title=_title(results, heat), title_justify="left", caption_justify="left")
    table.add_column("shape", no_wrap=True)
    table.add_column("×", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for row in results["rows"]:
        cells = [_cell(row["peers"].get(name), heat) for name in names]
        table.add_row(label(row), str(row["case"]["times"]), *cells)
    table.add_section()
    sums = results["sums"].get(heat, {})
    table.add_row("sum, each × times", "", *(_sum(sums.get(name)) for name in names), style="bold")
    return Group(table, *_refusals(results), Text(_LEGEND, style="dim"))


def show(results: Results, console: Console | None = None) -> None:
    """Print the tables, cold and (where measured) warm."""
    console = console or Console(highlight=False)
    for heat in results["sums"]:
        console.print(render(results, heat))


_LEGEND = (
    "Times are copies: 1 is one copy of the input by the same threads into a warm buffer; forward + backward, the "
    "median of the rounds and its quartiles. Below: forward, backward. err: the largest difference from float64 as a "
    "share of the largest value, for input of mean 0 and (after the comma) of mean 1e4."
)


def _title(results: Results, heat: str) -> str:
    about, settings = results["machine"], results["settings"]
    rotation = "inputs rotate over several times the last-level cache" if heat == "cold" else "the same input again"
    return (
        f"{settings['shapes']}, {settings['dtype']}, channels {settings['layout']}, {heat} ({rotation})\n"
        f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, evenly {about['evenly']} "
        f"({results['commit'] or 'installed'}; kernels {about['kernels']})"
    )


def _cell(measured: dict[str, Any] | None, heat: str) -> str:
    if measured is None or measured[heat] is None:
        return "refused" if measured and measured["error"] is not None else "–"
    copies = measured[heat]["copies"]
    both = copies["both"]
    errors = ", ".join(_error(measured[name]) for name in ("error", "error_offset") if measured[name] is not None)
    return (
        f"{both['median']:.2f} ({both['low']:.2f}–{both['high']:.2f})\n"
        f"{copies['forward']['median']:.2f} + {copies['backward']['median']:.2f}\nerr {errors}"
    )


def _error(error: float | str) -> str:
    return "NaN" if isinstance(error, str) else f"{error:.0e}"


def _sum(of: dict[str, Any] | None) -> str:
    if of is None:
        return "–"
    both = of["both"]
    slower = f"\n{both['slower']:.2f}× evenly's time" if "slower" in both else ""
    return f"{both['copies']:.2f} ({both['low']:.2f}–{both['high']:.2f}){slower}"


def _refusals(results: Results) -> list[Text]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"]:
        for name, measured in row["peers"].items():
            if measured["refused"]:
                reasons.setdefault((name, measured["refused"]), []).append(label(row))
    return [Text(f"{name}: {reason} ({', '.join(shapes)})") for (name, reason), shapes in reasons.items()]
