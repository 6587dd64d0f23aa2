"""Figure 1 of Ioffe and Szegedy (2015): three hidden layers of 100 sigmoids, batches of 60."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import torch

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, at_most
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, activation_inputs, moments_of_progress, training

PERCENTILES = (0.15, 0.50, 0.85)
STEEP = 2.0  # beyond it a sigmoid has less than half of its largest slope
WATCH = {
    "none": "See the band open late and leave its place.",
    "batch": "See the band open within the first steps and stay.",
}
UNIT = 0  # the "typical sigmoid" of the last hidden layer: always the first, never picked


def settings(full: bool) -> list[Setting]:
    """With and without; the paper names neither rate nor deviation, so both are fixed here."""
    steps = 10_000 if full else 2000
    return [
        Setting(norm=norm, activation="sigmoid", depth=3, width=100, batch=60, init=0.1, rate=0.1, steps=steps)
        for norm in ("none", "batch")
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Test accuracy, and the percentiles of one sigmoid's input, along the way."""
    values: Values = {"step": [], "accuracy": [], "low": [], "median": [], "high": []}
    levels = torch.tensor(PERCENTILES)
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 60, first=5)):
        entering = activation_inputs(network, data.test)[-1][:, UNIT]
        low, median, high = entering.quantile(levels).tolist()
        for name, value in zip(values, (step, accuracy(network, data.test), low, median, high), strict=True):
            values[name].append(value)
    return values


def share_of_steps(runs: Results) -> float:
    """The step at which the normalised network passes the plain one's final accuracy, over all steps.

    Twice the whole where it never does: no run can show more than "not within the steps it had".
    """
    (plain,), (normed,) = runs.where(norm="none"), runs.where(norm="batch")
    goal = plain.values["accuracy"][-1]
    passed = [s for s, a in zip(normed.values["step"], normed.values["accuracy"], strict=True) if a > goal]
    return (passed[0] if passed else 2 * normed.setting.steps) / plain.setting.steps


def wander(runs: Results, norm: str) -> float:
    """How far the median wandered, in widths of the final 15-to-85 range: largest minus smallest."""
    (run,) = runs.where(norm=norm)
    median, width = run.values["median"], run.values["high"][-1] - run.values["low"][-1]
    return float((max(median) - min(median)) / width)


def judge(results: Results) -> list[Verdict]:
    """Sooner, and steadier."""
    return [
        at_most(
            "At the paper's setting the normalised network passes the plain one's final accuracy "
            "within a tenth of its steps",
            "steps it needs over all steps of the plain network",
            results.interval(share_of_steps, "×"),
            0.1,
        ),
        at_least(
            "The input of the last sigmoid wanders less with batch normalization",
            "range of the median over training, plain over normalised",
            results.interval(lambda runs: wander(runs, "none") / wander(runs, "batch"), "×"),
            1.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Accuracy against steps, and the three percentiles side by side."""
    norms = results.distinct("norm")
    progress = [row for norm in norms for row in plots.along(results.where(norm=norm), norm)]
    steps = plots.steps_axis()
    taken = results[0].values["step"]
    tenth = alt.Chart(alt.InlineData(values=[{"step": taken[-1] / 10, "words": "a tenth of the steps"}]))
    tenth = tenth.encode(x=plots.log_axis("step", "training step", taken))
    mark = tenth.mark_rule(strokeDash=[2, 3], color=plots.SOFT) + tenth.mark_text(
        align="right", baseline="top", dx=-5, fontSize=11, color=plots.SOFT
    ).encode(text="words:N", y=alt.value(120))
    lines = plots.curves(progress, norms, plots.log_axis("step", "training step", taken), points=False)
    accuracy_chart = plots.sized(alt.layer(mark, lines))
    first = results.by_seed()[0]
    inputs = [
        {"norm": r.setting.norm, "step": s, "low": low, "median": median, "high": high}
        for r in first
        for s, low, median, high in zip(*(r.values[k] for k in ("step", "low", "median", "high")), strict=True)
    ]
    return [
        plots.Chart(
            "paper_accuracy", "Test accuracy while training",
            "At the dotted line the normalised network is already higher than the other ends. Figure 1a of the "
            "paper, its steps on a logarithmic axis. Lines are means over seeds, bands 95 % intervals.", accuracy_chart,
        ),
        *(
            plots.Chart(
                f"paper_input_{norm}", f"What enters the last sigmoid, {plots.label(norm)}",
                f"{WATCH[norm]} Figure 1{panel} of the paper: the 15th, 50th and 85th percentiles over the test "
                "samples of what enters one sigmoid of the last hidden layer, one seed. A sigmoid is steep between the "
                "dotted lines.",
                percentile_chart([i for i in inputs if i["norm"] == norm], norm, extent(inputs), steps), half=True,
            )
            for norm, panel in zip(norms, "bc", strict=False)
        ),
    ]  # fmt: skip


def extent(rows: list[dict[str, Any]]) -> list[float]:
    """What both panels must show: all percentiles, and the steep part of a sigmoid."""
    finite = [v for row in rows for v in (row["low"], row["high"]) if math.isfinite(v)]
    return [min(-1.2 * STEEP, *finite), max(1.2 * STEEP, *finite)]


def percentile_chart(rows: list[dict[str, Any]], norm: str, domain: list[float], steps: alt.X) -> alt.LayerChart:
    """The median as a line in a band from the 15th to the 85th percentile."""
    y = alt.Scale(domain=domain, nice=True)
    color = plots.COLORS[norm]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=steps)
    band = base.mark_area(opacity=0.2, color=color).encode(
        y=alt.Y("low:Q", title="input of the sigmoid", scale=y), y2="high:Q"
    )
    edges = [base.mark_line(strokeWidth=1, color=color).encode(y=alt.Y(f"{e}:Q", scale=y)) for e in ("low", "high")]
    median = base.mark_line(strokeWidth=2.5, color=color, strokeDash=plots.DASHES[norm])
    steep = alt.Chart(alt.InlineData(values=[{"y": -STEEP}, {"y": STEEP}])).mark_rule(strokeDash=[1, 3])
    layers = [band, *edges, median.encode(y=alt.Y("median:Q", scale=y)), steep.encode(y=alt.Y("y:Q", scale=y))]
    return plots.sized(alt.layer(*layers))  # type: ignore[no-any-return]


EXPERIMENT = Experiment(
    name="paper",
    question=QUESTIONS["paper"],
    how="Three hidden layers of {width} sigmoids, batches of {batch}, {steps} steps at learning rate {rate}; initial "
    "weights are Gaussian with standard deviation {init}. {seeds} seeds; a seed fixes weights and batches for both "
    "networks. The paper used MNIST; --data mnist5k comes closest to it.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
)
