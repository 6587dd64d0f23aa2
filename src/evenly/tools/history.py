"""What was watched: records by step, layer and side, as a page, a data frame or TensorBoard events."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from evenly.tools import files
from evenly.tools.names import visible
from evenly.tools.report import extra, page, spoken, svg

QUANTILES = (0.05, 0.15, 0.5, 0.85, 0.95)
_NAMES = tuple(f"q{round(100 * q):02d}" for q in QUANTILES)


@dataclass(frozen=True)
class Record:
    """One tensor at one step, from a sample of its elements.

    Args:
        step: training forwards before this one.
        layer: the norm.
        side: ``"input"`` or ``"output"``.
        mean: of all elements.
        std: of all elements.
        dead: share of channels that are nowhere positive: silent behind a ReLU.
        drift: how far the channels' means moved since the first look, in standard deviations.
        quantiles: at 5, 15, 50, 85 and 95 %.
        edges: of the histogram's bins; the outer ones hold what lies beyond.
        counts: in each bin.
    """

    step: int
    layer: str
    side: str
    mean: float
    std: float
    dead: float
    drift: float
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def row(self) -> dict[str, Any]:
        """The numbers without the histogram, as plain values."""
        rest = {"mean": self.mean, "std": self.std, "dead": self.dead, "drift": self.drift}
        return {"step": self.step, "layer": self.layer, "side": self.side, **rest} | dict(
            zip(_NAMES, self.quantiles, strict=True)
        )


@dataclass(repr=False)
class History:
    """Everything watched so far.

    Args:
        records: by step, then in the order of calls.
    """

    records: list[Record] = field(default_factory=list)

    def frame(self) -> Any:
        """A pandas data frame, one row for each record.

        Raises:
            ImportError: pandas is missing.
        """
        try:
            pd = import_module("pandas")
        except ImportError:
            raise ImportError("a data frame needs pandas; install it with: pip install pandas") from None
        return pd.DataFrame([record.row() for record in self.records])

    def to_tensorboard(self, writer: Any) -> None:
        """Write scalars and histograms to a ``torch.utils.tensorboard.SummaryWriter``."""
        for r in self.records:
            name = f"{visible(r.layer) or 'model'}/{r.side}"
            for key in ("mean", "std", "dead", "drift"):
                writer.add_scalar(f"{name}/{key}", getattr(r, key), r.step)
            number = sum(r.counts)
            writer.add_histogram_raw(
                name, min=r.edges[0], max=r.edges[-1], num=number, sum=r.mean * number,
                sum_squares=(r.std**2 + r.mean**2) * number, bucket_limits=list(r.edges[1:]),
                bucket_counts=list(r.counts), global_step=r.step,
            )  # fmt: skip

    def __repr__(self) -> str:
        """A few lines: how much was seen, and the layers that moved most."""
        steps = sorted({r.step for r in self.records})
        if not steps:
            return "<History of nothing>"
        last = [r for r in self.records if r.step == steps[-1] and r.side == "input"]
        moved = sorted(last, key=lambda r: -r.drift)[:3]
        norms = len({r.layer for r in self.records})
        lines = [f"<History of {norms} norms, {len(steps)} looks, steps {steps[0]} to {steps[-1]}"]
        lines += [f"  {r.layer or '(model)'}: input {r.mean:.3g} ± {r.std:.3g}, drift {r.drift:.2f}" for r in moved]
        return "\n".join(lines) + ">"

    def _repr_html_(self) -> str | None:
        """The page, in a notebook; text where the ``report`` extra is missing, or nothing was recorded."""
        try:
            return self.to_html()
        except (ImportError, ValueError):
            return None

    def to_json(self, path: str | Path | None = None) -> str:
        """The records as JSON text, and written to ``path`` where one is given; what is not finite is null."""
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.row().items()}
            for record in self.records
        ]
        return _given_out(json.dumps(rows, indent=1, allow_nan=False) + "\n", path)

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page as text, and written to ``path`` where one is given.

        Raises:
            ImportError: the ``report`` extra is missing.
            ValueError: nothing was recorded.
        """
        if not self.records:
            raise ValueError("nothing was recorded: the model ran no training forward inside the block.")
        from evenly import __version__

        places = list(dict.fromkeys((r.layer, r.side) for r in self.records))
        rows = [self._of(*place) for place in places]
        layers = [
            {"name": spoken(layer), "side": side, "last": records[-1], "bands": svg(_bands(records)),
             "histogram": svg(_histogram(records[-1]))}
            for (layer, side), records in zip(places, rows, strict=True)
        ]  # fmt: skip
        steps = sorted({r.step for r in self.records})
        return _given_out(page("history.html", layers=layers, steps=steps, version=__version__), path)

    def _of(self, layer: str, side: str) -> list[Record]:
        return [r for r in self.records if (r.layer, r.side) == (layer, side)]


def _given_out(text: str, path: str | Path | None) -> str:
    if path is not None:
        files.write(path, text)
    return text


_BLUE, _INK = "#0072b2", "#1b1f24"


def _bands(records: list[Record]) -> Any:
    """The median over steps, with the bands from 15 to 85 and 5 to 95 %."""
    alt = extra("altair")
    base = alt.Chart(alt.Data(values=[r.row() for r in records]))
    x = alt.X("step:Q", title=None, axis=alt.Axis(tickCount=4))
    outer = base.mark_area(color=_BLUE, opacity=0.18).encode(x=x, y=alt.Y("q05:Q", title=None), y2="q95:Q")
    inner = base.mark_area(color=_BLUE, opacity=0.35).encode(x=x, y="q15:Q", y2="q85:Q")
    line = base.mark_line(color=_INK, strokeWidth=1.5, point=len(records) == 1).encode(x=x, y="q50:Q")
    return _quiet((outer + inner + line).properties(width=260, height=70))


def _histogram(record: Record) -> Any:
    """The last look's distribution."""
    alt = extra("altair")
    rows = [{"x": x, "n": n} for x, n in zip(record.edges, (*record.counts, 0), strict=True)]
    chart = alt.Chart(alt.Data(values=rows)).mark_area(color=_BLUE, opacity=0.6, interpolate="step-after")
    x = alt.X("x:Q", title=None, axis=alt.Axis(tickCount=4))
    return _quiet(chart.encode(x=x, y=alt.Y("n:Q", axis=None)).properties(width=160, height=70))


def _quiet(chart: Any) -> Any:
    return chart.configure_view(stroke=None).configure_axis(gridColor="#e8ecf0", domain=False, ticks=False)
