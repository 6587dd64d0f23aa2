"""The charts' common look: colours that a colour-blind reader can tell apart, one band per interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from evenly.lab.experiment import Results
from evenly.lab.judge import Interval

# Okabe and Ito's palette; each norm keeps its colour, dash and mark in every chart.
COLORS = {
    "none": "#D55E00", "batch": "#0072B2", "ghost": "#56B4E9", "layer": "#009E73",
    "group": "#CC79A7", "instance": "#E69F00", "renorm": "#7F7F7F",
}  # fmt: skip
DASHES = {
    "none": [6, 3], "batch": [1, 0], "ghost": [2, 2], "layer": [8, 2, 2, 2],
    "group": [4, 4], "instance": [1, 3], "renorm": [10, 3],
}  # fmt: skip
LABELS = {"none": "no norm", "ghost": "ghost batches", "renorm": "renormalization"}
HEIGHT = 260


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
    """

    name: str
    title: str
    caption: str
    chart: alt.TopLevelMixin
    slider: Slider | None = None
    half: bool = False

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        return self.chart._repr_mimebundle_(*args, **kwargs)


def label(norm: str) -> str:
    """``none`` in words; the rest as they are."""
    return LABELS.get(norm, norm if norm not in COLORS else f"{norm} norm")


def series(names: Sequence[str], field: str = "norm") -> dict[str, Any]:
    """Colour and dash encodings of ``field``: a norm keeps its own in every chart, other names take the next free."""
    domain = [label(name) for name in names]
    spare = [key for key in COLORS if key not in names]
    looks = [name if name in COLORS else spare.pop(0) for name in names]
    return {
        "color": alt.Color(
            f"{field}:N", title=None, scale=alt.Scale(domain=domain, range=[COLORS[n] for n in looks]),
            legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1),
        ),
        "strokeDash": alt.StrokeDash(
            f"{field}:N", title=None, scale=alt.Scale(domain=domain, range=[DASHES[n] for n in looks])
        ),
    }  # fmt: skip


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
    tooltip: Sequence[Any] = (),
) -> alt.LayerChart:
    """A line per norm with the interval around it; by default of accuracies, in per cent.

    Args:
        rows: what `bands` makes.
        norms: which, in the order of the legend.
        x: the horizontal axis.
        title: of the vertical axis.
        domain: of the vertical axis; None: as the rows need.
        form: of the vertical axis's numbers, in d3's language.
        points: whether each value has a dot.
        tooltip: what a dot says.
    """
    look = series(norms)
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False)
    axis = alt.Axis(format=form)
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, color=look["color"])
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=title, scale=scale, axis=axis), y2="high:Q")
    line = base.mark_line(point={"size": 36, "filled": True} if points else False, strokeWidth=2.2).encode(
        y=alt.Y("value:Q", title=title, scale=scale, axis=axis),
        strokeDash=look["strokeDash"],
        tooltip=list(tooltip) if tooltip else alt.Undefined,
    )
    layered: alt.LayerChart = sized(alt.layer(band, line))
    return layered


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
