"""Why are a weight γ and a bias β learned?"""

from __future__ import annotations

from typing import Any

import altair as alt
import torch
from torch import Tensor
from torch.nn import functional as F

from evenly.lab import plots
from evenly.lab.data import Dataset, Split
from evenly.lab.experiment import Experiment, Result, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, activation_inputs, evaluating, moments_of_progress, training

WITH, WITHOUT = "batch", "batch, no γ and β"


def settings(full: bool) -> list[Setting]:
    """A narrow sigmoid network, which needs all its curvature, with and without γ and β."""
    return [
        Setting(norm="batch", affine=affine, activation="sigmoid", width=10, rate=0.3, steps=4000 if full else 1000)
        for affine in (True, False)
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Training loss and test accuracy along the way; at the end, how curved each layer's sigmoids are used."""
    values: Values = {"step": [], "loss": [], "accuracy": []}
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 20, first=5)):
        with evaluating(network):
            loss = F.cross_entropy(network(*data.train.inputs), data.train.y)
        values["step"].append(step)
        values["loss"].append(float(loss))
        values["accuracy"].append(accuracy(network, data.test))
        if step == setting.steps:
            entering = _entering(network, data.test)
            values["curved"] = [curved(x) for x in entering]
            values["deviation"] = [float(x.std(0).mean()) for x in entering]
    return values


def _entering(network: torch.nn.Module, split: Split) -> list[Tensor]:
    return [x.double() for x in activation_inputs(network, split)]


def curved(x: Tensor) -> float:
    """The share of a sigmoid's output that no straight line explains: 1 − correlation², averaged over the units."""
    inputs, outputs = x - x.mean(0), torch.sigmoid(x) - torch.sigmoid(x).mean(0)
    squared = (inputs * outputs).mean(0).square() / (inputs.square().mean(0) * outputs.square().mean(0))
    return float((1 - squared).mean())


def name_of(result: Result) -> str:
    """What a line of the charts is called."""
    return WITH if result.setting.affine else WITHOUT


def last(runs: Results, name: str, value: str) -> float:
    """A value at the end, or of the last layer, of the one run with this name."""
    return float(runs.split(name_of)[name][0].values[value][-1])


def judge(results: Results) -> list[Verdict]:
    """What γ and β are for, and what they bring."""
    return [
        at_least(
            "Without γ and β every layer's sigmoids work where they are almost a straight line",
            "share of the output that a straight line explains, in the layer where it is least",
            results.where(affine=False).interval(lambda runs: 1 - max(runs[0].values["curved"]), "accuracy"),
            0.98,
        ),
        at_least(
            "With γ and β the last layer learns to leave that line: twice as much of its output is curved, or more",
            "share that no straight line explains, with over without",
            results.interval(lambda runs: last(runs, WITH, "curved") / last(runs, WITHOUT, "curved"), "×"),
            2.0,
        ),
        at_least(
            "Without γ and β the training loss ends at twice the value or more",
            "training loss, without over with",
            results.interval(lambda runs: last(runs, WITHOUT, "loss") / last(runs, WITH, "loss"), "×"),
            2.0,
        ),
        at_least(
            "With γ and β the network ends with at least the test accuracy that it has without",
            "final accuracy, with minus without",
            results.interval(lambda runs: last(runs, WITH, "accuracy") - last(runs, WITHOUT, "accuracy"), "points"),
            0.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Where on the sigmoid the last layer works, and the training loss."""
    lines = results.split(name_of)
    steps = plots.log_axis("step", "training step", results[0].values["step"])
    loss = [row for name, runs in lines.items() for row in plots.along(runs, name, "loss", top=None)]
    return [
        plots.Chart(
            "affine", "Where the last layer's sigmoids work",
            "See the two thick pieces of the sigmoid, from the 2nd to the 98th hundredth of what enters if it were "
            "normal: without γ and β the piece around 0 is nearly straight; with them it reaches into both bends.",
            worked(lines), half=True,
        ),
        plots.Chart(
            "affine_loss", "Training loss",
            "See the gap at the right end: what cannot bend cannot fit. Means over seeds with 95 % intervals.",
            plots.curves(loss, list(lines), steps, "training loss", domain=None, form="~g", points=False), half=True,
        ),
    ]  # fmt: skip


def worked(lines: dict[str, Results]) -> alt.LayerChart:
    """The sigmoid, and two deviations to each side of 0 as the last layer's inputs spread on average."""

    def points(low: float, high: float) -> list[dict[str, Any]]:
        xs = torch.linspace(low, high, 81)
        return [{"x": float(x), "y": float(y)} for x, y in zip(xs, torch.sigmoid(xs), strict=True)]

    reach = {name: 2 * sum(r.values["deviation"][-1] for r in runs) / len(runs) for name, runs in lines.items()}
    far = max(6.0, *reach.values())
    rows = [{**p, "norm": plots.label(name)} for name, most in reach.items() for p in points(-most, most)]
    look = plots.series(list(lines), legend=False)["color"]
    x = alt.X("x:Q", title="what enters the sigmoid", scale=alt.Scale(domain=[-far, far]))
    y = alt.Y("y:Q", title="what leaves it")
    whole = alt.Chart(alt.InlineData(values=points(-far, far))).mark_line(strokeWidth=1.5, color="#7F7F7F")
    width = alt.StrokeWidth(
        "norm:N", legend=None, scale=alt.Scale(range=[5, 11], domain=[plots.label(n) for n in lines])
    )
    pieces = alt.Chart(alt.InlineData(values=rows)).mark_line(opacity=0.75).encode(
        x=x, y=y, color=look, strokeWidth=width, order=alt.Order("x:Q")
    )  # fmt: skip
    heads = [
        {"norm": plots.label(name), "x": -0.95 * far, "y": 0.97 - 0.08 * i,
         "words": f"{plots.label(name)}: ±{reach[name]:.1f}"}
        for i, name in enumerate(lines)
    ]  # fmt: skip
    names = alt.Chart(alt.InlineData(values=heads)).mark_text(align="left", fontSize=12, fontWeight="bold")
    layered: alt.LayerChart = plots.sized(
        alt.layer(whole.encode(x=x, y=y), pieces, names.encode(x=x, y=y, text="words:N", color=look))
    )
    return layered


EXPERIMENT = Experiment(
    name="affine",
    question=QUESTIONS["affine"],
    how="Three hidden layers of {width} sigmoids, each behind a batch norm with and without a learned weight γ and "
    "bias β; batches of {batch}, {steps} steps at learning rate {rate}. So narrow a network has to bend: what its "
    "sigmoids do to the test samples is compared with a straight line. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(8, 10),
)
