"""The card: one page without scripts or links, to be pasted into an issue thread."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenly.tools import names
from evenly.tools.finding import LEVELS, Channel, LayerView, listed

if TYPE_CHECKING:
    from evenly.tools.diagnosis import Diagnosis

_BLUE, _RED, _GRAY = "#0072b2", "#d55e00", "#5b6673"  # told apart by everyone (Okabe and Ito)


def card(diagnosis: Diagnosis) -> str:
    """A diagnosis as one self-contained HTML page; its charts are drawn into it.

    Raises:
        ImportError: the ``report`` extra is missing.
    """
    from evenly import __version__

    measured = any(view.distance is not None for view in diagnosis.layers)
    counts = {level: sum(f.level == level for f in diagnosis.findings) for level in reversed(LEVELS)}
    return page(
        "card.html",
        d=diagnosis,
        summary=", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items() if n)
        or ("nothing found" if diagnosis.looked else "no norm that I know was looked at"),
        spoken=spoken,
        listed=lambda layers, most: listed([spoken(layer) for layer in layers], most),
        channels=svg(_channels(diagnosis.channels)) if diagnosis.channels else "",
        layers=svg(_distances(diagnosis.layers) if measured else _ranges(diagnosis.layers)) if diagnosis.layers else "",
        measured=measured,
        version=__version__,
    )


def spoken(layer: str) -> str:
    """A layer's name as a reader takes it: a number alone is no name."""
    return f"layer {layer}" if layer.isdecimal() else layer or "(model)"


def page(template: str, **values: Any) -> str:
    """A template of ours filled in; everything but what it marks safe is escaped and made visible."""
    jinja2 = extra("jinja2")
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        finalize=visible_text,
    )  # fmt: skip
    return str(environment.get_template(template).render(**values))


def visible_text(value: Any) -> Any:
    """What a template shows: texts of any origin by `names.block`, drawings of ours as they are."""
    return names.block(value) if type(value) is str else value


def svg(chart: Any) -> str:
    """An Altair chart as a drawing; a name with control signs in it would end the process there."""
    spec = names.shown_everywhere(chart.to_dict(format="vega-lite"))
    text = str(extra("vl_convert").vegalite_to_svg(spec))
    return text[text.index("<svg") :]


def extra(name: str) -> Any:
    """A package of the ``report`` extra, or an error that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'the page needs {error.name}; install it with: pip install "evenly[report]"') from None


def _channels(channels: list[Channel]) -> Any:
    """Each channel's distribution over the data, and the normal distribution of its running statistics."""
    alt = extra("altair")
    bars, curves = [], []
    for c in channels:
        name = f"channel {c.channel}"
        bars += [{"channel": name, "low": low, "density": d} for low, d in zip(c.edges, (*c.density, 0.0), strict=True)]
        curves += _curve(name, c)
    rows = [{**row, "kind": "bar"} for row in bars] + [{**row, "kind": "line"} for row in curves]
    x = alt.X("low:Q", title="input of the norm")
    filled = (
        alt.Chart()
        .transform_filter("datum.kind == 'bar'")
        .mark_area(color=_BLUE, opacity=0.55, interpolate="step-after")
    )
    line = alt.Chart().transform_filter("datum.kind == 'line'").mark_line(color=_RED, strokeWidth=2.5)
    both = alt.layer(
        filled.encode(x=x, y=alt.Y("density:Q", axis=None)),
        line.encode(x="x:Q", y=alt.Y("y:Q", axis=None)),
        data=alt.Data(values=rows),
    ).properties(width=240, height=150)
    order = [f"channel {c.channel}" for c in channels]
    chart = both.facet(facet=alt.Facet("channel:N", title=None, sort=order), columns=3)
    return _plain(chart.resolve_scale(x="independent", y="independent"))


def _curve(name: str, c: Channel, points: int = 121) -> list[dict[str, Any]]:
    """The normal density of the running statistics over what is of interest: the data and itself."""
    if not math.isfinite(c.running_mean) or not math.isfinite(c.running_std):
        return []
    std = max(c.running_std, (c.edges[-1] - c.edges[0]) / 200)
    low = min(c.edges[0], c.running_mean - 3.5 * std)
    high = max(c.edges[-1], c.running_mean + 3.5 * std)
    xs = [low + (high - low) * i / (points - 1) for i in range(points)]
    scale = 1 / (std * math.sqrt(2 * math.pi))
    return [{"channel": name, "x": x, "y": scale * math.exp(-0.5 * ((x - c.running_mean) / std) ** 2)} for x in xs]


def _distances(views: list[LayerView]) -> Any:
    """One bar for each layer; the color says whether it is far."""
    alt = extra("altair")
    rows = [
        {"layer": v.name or "(model)", "distance": min(v.distance or 0.0, 100.0), "far": (v.distance or 0) > 0.5}
        for v in views
    ]
    chart = alt.Chart(alt.Data(values=rows)).mark_bar().encode(
        y=alt.Y("layer:N", sort=[r["layer"] for r in rows], title=None, axis=alt.Axis(labelLimit=260)),
        x=alt.X("distance:Q", title="standard deviations"),
        color=alt.condition("datum.far", alt.value(_RED), alt.value(_BLUE)),
    )  # fmt: skip
    return _plain(chart.properties(width=560, height=alt.Step(16)))


def _ranges(views: list[LayerView]) -> Any:
    """From the least to the largest running standard deviation of each layer, and the median."""
    alt = extra("altair")
    rows = [
        {
            "layer": v.name or "(model)",
            "low": max(v.std[0], 1e-6),
            "mid": max(v.std[1], 1e-6),
            "high": max(v.std[2], 1e-6),
        }
        for v in views
    ]
    y = alt.Y("layer:N", sort=[r["layer"] for r in rows], title=None, axis=alt.Axis(labelLimit=260))
    scale = alt.Scale(type="log")
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    bars = base.mark_bar(color=_BLUE, opacity=0.45, height=7).encode(
        x=alt.X("low:Q", scale=scale, title="running standard deviation"), x2="high:Q"
    )
    ticks = base.mark_tick(color=_RED, thickness=3, size=12).encode(x=alt.X("mid:Q", scale=scale))
    return _plain((bars + ticks).properties(width=560, height=alt.Step(16)))


def _plain(chart: Any) -> Any:
    """No frame, quiet axes."""
    # The page's font may be wider than the one that labels were measured with.
    return (
        chart.properties(padding={"left": 40, "top": 5, "right": 5, "bottom": 5})
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e8ecf0", domainColor=_GRAY, tickColor=_GRAY, labelColor="#1b1f24", titleColor=_GRAY)
    )
