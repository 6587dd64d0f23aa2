"""One picture of a run: a bar for each peer and shape, in copies of the tensor, with the quartiles."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evenly.bench.results import Results, label
from evenly.tools import files

# Okabe and Ito's colours, told apart by colour-blind readers; evenly's comes first.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]


def draw(results: Results, path: str | Path, *, heat: str = "cold", part: str = "both") -> None:
    """Write the picture as SVG or PNG, by the ending of ``path``.

    Raises:
        ValueError: another ending.
        ImportError: the ``report`` extra is not installed.
    """
    path = Path(path)
    check(path)
    form = path.suffix.removeprefix(".")
    drawn: io.StringIO | io.BytesIO = io.StringIO() if form == "svg" else io.BytesIO()
    chart(results, heat=heat, part=part).save(drawn, format=form, **({"ppi": 160} if form == "png" else {}))
    files.write(path, drawn.getvalue())


def check(path: Path) -> None:
    """Refuse what cannot be drawn, before anything is measured; raises as `draw` does."""
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a picture is .svg or .png, got {path.name}.")
    for package in ("altair", "vl_convert"):
        if find_spec(package) is None:
            raise ImportError(f"a picture needs {package}, of the report extra: pip install 'evenly[report]'")


def chart(results: Results, *, heat: str = "cold", part: str = "both") -> Any:
    """The picture as an Altair chart."""
    import altair as alt

    names = list(dict.fromkeys(name for row in results["rows"] for name in row["peers"]))
    order = [label(row) for row in results["rows"]]
    values = [
        {"shape": label(row), "peer": name, **measured[heat]["copies"][part]}
        for row in results["rows"]
        for name, measured in row["peers"].items()
        if measured[heat]
    ]
    settings = results["settings"]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("shape:N", sort=order, title=None), yOffset=alt.YOffset("peer:N", sort=names)
    )
    colour = alt.Color("peer:N", sort=names, scale=alt.Scale(domain=names, range=_COLOURS[: len(names)]), title=None)
    bars = base.mark_bar().encode(x=alt.X("median:Q", title="copies of the input (less is better)"), color=colour)
    spread = base.mark_rule(color="#333333").encode(x="low:Q", x2="high:Q")
    title = f"{settings['shapes']}: norm + activation, {'forward + backward' if part == 'both' else part}, {heat}"
    subtitle = f"{settings['dtype']}, channels {settings['layout']}; {results['machine']['processor']}"
    return (bars + spread).properties(
        title=alt.Title(title, subtitle=subtitle, anchor="start"), width=520, height=alt.Step(14)
    )
