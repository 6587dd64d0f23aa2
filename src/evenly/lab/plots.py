"""The charts' common look: colours that a colour-blind reader can tell apart, one band per interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt

from evenly.lab.experiment import Results
from evenly.lab.judge import Interval

# Okabe and Ito's palette for the norms, further colours for everything else that is drawn as a line.
# A colour has one meaning in all charts: batch norm as it usually is keeps its own under other names.
USUAL = "#0072B2"
COLORS = {
    "none": "#D55E00", "batch": USUAL, "ghost": "#56B4E9", "layer": "#009E73",
    "group": "#CC79A7", "instance": "#E69F00", "renorm": "#7F7F7F",
    "batch, shifted": "#332288", "batch, no masks": "#882255", "batch, 4 or more": "#999933",
    "batch, on inputs": "#44AA99", "before": USUAL, "after": "#AA4499", "batch, no γ and β": "#661100",
    "neuron 1": "#5D3A9B", "neuron 2": "#1F9E89", "momentum 0.1": USUAL, "momentum 0.01": "#6A51A3",
    "momentum 0.5": "#B15928", "cumulative": "#66A61E", "debiased 0.01": "#117733", "recalibrated": "#3A3A3A",
    "batch statistics": "#C51B7D",
}  # fmt: skip
DASHES = {
    "none": [6, 3], "batch": [1, 0], "ghost": [2, 2], "layer": [8, 2, 2, 2],
    "group": [4, 4], "instance": [1, 3], "renorm": [10, 3],
}  # fmt: skip
LABELS = {"none": "no norm", "ghost": "ghost batches", "renorm": "renormalization"}
HEIGHT = 260
SOFT = "#57606A"  # of lines and words that are no data


@dataclass(frozen=True)
class Slider:
    """A slider with a play button that moves a chart's parameter.

    Args:
        parameter: the chart's parameter, ``step_index`` from 0.
        labels: what the slider says at each position.
    """

    parameter: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """One chart of the report.

    Args:
        name: of the file it is saved as.
        title: what it shows, as a heading.
        caption: how to read it.
        chart: Altair's.
        slider: if it moves.
        half: whether it stands beside its neighbour where the page is wide enough.
        finding: what the picture shows, in a sentence or two, for who cannot see it.
    """

    name: str
    title: str
    caption: str
    chart: alt.TopLevelMixin
    slider: Slider | None = None
    half: bool = False
    finding: str = ""

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        return self.chart._repr_mimebundle_(*args, **kwargs)


def label(norm: str) -> str:
    """``none`` in words; the rest as they are."""
    return LABELS.get(norm, f"{norm} norm" if norm in DASHES else norm)


def series(names: Sequence[str], field: str = "norm", *, legend: bool = True) -> dict[str, Any]:
    """Colour and dash encodings of ``field``: a norm keeps its own in every chart."""
    domain = [label(name) for name in names]
    drawn = alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1) if legend else None
    return {
        "color": alt.Color(
            f"{field}:N", title=None, legend=drawn,
            scale=alt.Scale(domain=domain, range=[COLORS[n] for n in names]),
        ),
        "strokeDash": alt.StrokeDash(
            f"{field}:N", title=None, legend=alt.Undefined if legend else None,
            scale=alt.Scale(domain=domain, range=[DASHES.get(n, [1, 0]) for n in names]),
        ),
    }  # fmt: skip


def ends(
    rows: Sequence[dict[str, Any]], x: str, y: str = "value", name: str = "norm", *,
    domain: Sequence[float] | None = (0, 1),
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per line of a chart: its name, to be written at its end, moved apart where ends lie close together."""
    last: dict[str, dict[str, Any]] = {row[name]: row for row in sorted(rows, key=lambda row: float(row[x]))}
    finite = [float(row[y]) for row in rows if math.isfinite(row[y])]
    low, high = domain or (min(finite, default=0.0), max(finite, default=1.0))
    gap = (15 if domain else 22) / HEIGHT * ((high - low) or 1.0)  # a free axis reaches further than its rows
    place = {who: min(max(float(row[y]), low), high) if math.isfinite(row[y]) else low for who, row in last.items()}
    ordered = sorted(place, key=place.__getitem__)
    for _ in range(200):  # push neighbours apart, a little at a time, until all have room
        for lower, upper in pairwise(ordered):
            short = gap - (place[upper] - place[lower])
            if short > 1e-9:
                place[lower], place[upper] = place[lower] - short / 2, place[upper] + short / 2
    return [{name: who, x: last[who][x], "place": place[who]} for who in ordered]


def names_at_ends(
    rows: Sequence[dict[str, Any]], names: Sequence[str], x: alt.X, *, name: str = "norm",
    domain: Sequence[float] | None = (0, 1), goal: float | None = None,
) -> alt.Chart:  # fmt: skip
    """The name of each line beside its end, in place of a legend; ``goal``, if given, is named there too."""
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False)
    across = str(x.to_dict()["field"])  # type: ignore[call-overload]
    shown = {label(n): COLORS[n] for n in names}
    ending = list(rows)
    if goal is not None:
        words = f"{goal:.0%}: trained"
        shown[words] = SOFT
        ending.append({name: words, across: max(row[across] for row in rows), "value": goal})
    labels = ends(ending, across, name=name, domain=domain)
    drawn = alt.Chart(alt.InlineData(values=labels)).mark_text(align="left", dx=7, fontSize=12, fontWeight="bold")
    color = alt.Color(f"{name}:N", legend=None, scale=alt.Scale(domain=list(shown), range=list(shown.values())))
    named: alt.Chart = drawn.encode(x=x, y=alt.Y("place:Q", scale=scale), text=f"{name}:N", color=color)
    return named


def bands(groups: Sequence[tuple[dict[str, Any], Sequence[float]]], top: float | None = 1.0) -> list[dict[str, Any]]:
    """One record per group with ``value``, ``low``, ``high`` of its interval.

    Intervals are cut at 0 and at ``top``, between which the values must lie: 1 for accuracies.
    """
    rows = []
    for keys, values in groups:
        interval = Interval.of(list(values))
        low, high = (interval.low, interval.high) if interval.seeds > 1 else (interval.value, interval.value)
        rows.append(
            {
                **keys,
                "value": interval.value,
                "low": max(low, 0),
                "high": high if top is None else min(high, top),
                "seeds": len(values),
            }
        )
    return rows


def grouped(results: Results, field: str, value: Callable[[Any], float], **keys: str) -> list[dict[str, Any]]:
    """`bands` of a value over seeds for each norm and each value of ``field``."""
    groups = []
    for norm in results.distinct("norm"):
        for x in results.distinct(field):
            runs = results.where(norm=norm, **{field: x})
            if len(runs):
                groups.append(({"norm": label(norm), field: x}, [value(r) for r in runs]))
    return bands(groups)


def along(results: Results, name: str, value: str = "accuracy", top: float | None = 1.0) -> list[dict[str, Any]]:
    """`bands` at each recorded step of one line of a chart, which is called ``name``."""
    groups = [
        ({"norm": label(name), "step": step}, [r.values[value][i] for r in results])
        for i, step in enumerate(results[0].values["step"])
    ]
    return bands(groups, top)


def steps_axis() -> alt.X:
    """Training steps."""
    return alt.X("step:Q", title="training step", axis=alt.Axis(format=",d", tickCount=6))


def curves(
    rows: list[dict[str, Any]],
    norms: Sequence[str],
    x: alt.X,
    title: str = "test accuracy",
    *,
    domain: Sequence[float] | None = (0, 1),
    form: str = "%",
    points: bool = True,
    goal: float | None = None,
    field: str = "norm",
) -> alt.LayerChart:
    """A line per norm with the interval around it and its name at its end; by default of accuracies, in per cent.

    Args:
        rows: what `bands` makes.
        norms: which, in the order of the legend.
        x: the horizontal axis.
        title: of the vertical axis.
        domain: of the vertical axis, beyond which nothing is drawn; None: as the rows need.
        form: of the vertical axis's numbers, in d3's language.
        points: whether each value has a dot.
        goal: the accuracy that counts as trained, drawn as a line.
        field: what tells the lines apart.
    """
    look = series(norms, field, legend=False)
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False)
    axis = alt.Axis(format=form)
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, color=look["color"])
    y = alt.Y("low:Q", title=title, scale=scale, axis=axis)
    band = base.mark_area(opacity=0.15 if len(norms) < 5 else 0.07, clip=True).encode(y=y, y2="high:Q")
    line = base.mark_line(
        point={"size": 36, "filled": True} if points else False, strokeWidth=2.2, clip=domain not in (None, (0, 1))
    ).encode(y=alt.Y("value:Q", title=title, scale=scale, axis=axis), strokeDash=look["strokeDash"])
    layers = [band, line, names_at_ends(rows, norms, x, name=field, domain=domain, goal=goal)]
    if goal is not None:
        rule = alt.Chart(alt.InlineData(values=[{"goal": goal}])).mark_rule(strokeDash=[2, 3], color=SOFT)
        layers.insert(0, rule.encode(y=alt.Y("goal:Q", scale=scale)))
    layered: alt.LayerChart = sized(alt.layer(*layers).resolve_scale(color="independent"))
    return layered


def from_floor(rows: Sequence[dict[str, Any]], steps: str = "step") -> tuple[float, float]:
    """The part of the accuracy axis where lines end: from ten points below the lowest end, at most to 100 %.

    Example:
        >>> from_floor([{"step": 1, "value": 0.1, "norm": "a"}, {"step": 9, "value": 0.93, "norm": "a"}])
        (0.8, 1.0)
    """
    last = max(row[steps] for row in rows)
    lowest = min(row["value"] for row in rows if row[steps] == last)
    return max(0.0, math.floor(lowest * 10 - 1) / 10), 1.0


def accuracy_axis(field: str = "value", title: str = "test accuracy") -> alt.Y:
    """Accuracy from 0 to 1 in per cent."""
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))


def log_axis(field: str, title: str, values: Sequence[float]) -> alt.X:
    """A logarithmic axis from the smallest to the largest of ``values``, with few ticks at round numbers."""
    low, high = min(values), max(values)
    return alt.X(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(format=",~g", values=log_ticks(low, high, sorted(set(values)))),
    )


def log_ticks(low: float, high: float, values: Sequence[float] = ()) -> list[float]:
    """The powers of ten in ``low`` to ``high``; over few decades the values themselves, or 1, 2 and 5 of each.

    Example:
        >>> log_ticks(5, 800)
        [5, 10, 20, 50, 100, 200, 500]
        >>> log_ticks(0.001, 100)
        [0.001, 0.01, 0.1, 1, 10, 100]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = high / low >= 10_000
    if not wide and 0 < len(values) < 10:
        return list(values)
    ticks = [float(f"{m}e{d}") for d in decades for m in ((1,) if wide else (1, 2, 5))]
    return [int(t) if t.is_integer() else t for t in ticks if low <= t <= high]


def sized(chart: Any, height: int = HEIGHT) -> Any:
    """As wide as the page allows."""
    return chart.properties(width="container", height=height)
