"""Do layer inputs stay put?"""

from __future__ import annotations

from functools import partial
from typing import Any

import altair as alt
import torch

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import activation_inputs, moments_of_progress, training

EDGE, BINS = 5.0, 40  # histograms reach from -EDGE to EDGE; what lies beyond counts in the outermost bins


def settings(full: bool) -> list[Setting]:
    """The paper's network, with and without."""
    return [
        Setting(norm=norm, activation="sigmoid", init=0.1, rate=0.3, steps=5000 if full else 1000)
        for norm in ("none", "batch")
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Histogram, mean and deviation of what enters each layer's activation, along the way."""
    values: Values = {"step": [], "density": [], "drift": []}
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step, network in training(setting, seed, data, [0, *moments_of_progress(setting.steps, 24, first=5)]):
        entering = activation_inputs(network, data.test)
        now = [(x.mean(0), x.std(0)) for x in entering]
        moved = [
            float(((mean - mean0).abs() / ((std + std0) / 2)).mean())
            for (mean, std), (mean0, std0) in zip(now, before, strict=False)
        ]
        values["step"].append(step)
        values["density"].append([_density(x) for x in entering])
        values["drift"].append(moved or [0.0] * len(now))
        before = now
    return values


def _density(x: torch.Tensor) -> list[float]:
    counts = torch.histc(x.clamp(-EDGE, EDGE), BINS, -EDGE, EDGE)
    return [round(share, 4) for share in (counts / counts.sum()).tolist()]


def path(runs: Results, norm: str, layer: int) -> float:
    """How far a layer's inputs drifted in all: the sum over snapshots of |change of mean| / deviation."""
    (run,) = runs.where(norm=norm)
    return float(sum(moved[layer] for moved in run.values["drift"]))


def ratio(runs: Results, layer: int) -> float:
    """The drift of a layer's inputs, plain over normalised."""
    return path(runs, "none", layer) / path(runs, "batch", layer)


def layers(results: Results) -> int:
    """How many layers were watched."""
    return len(results[0].values["drift"][0])


def judge(results: Results) -> list[Verdict]:
    """One verdict per layer."""
    return [
        at_least(
            f"What enters the activations of layer {layer + 1} drifts less with batch normalization",
            "distance drifted in standard deviations, plain over normalised",
            results.interval(partial(ratio, layer=layer), "×"),
            1.0,
        )
        for layer in range(layers(results))
    ]  # fmt: skip


def charts(results: Results) -> list[plots.Chart]:
    """The histograms with a slider over steps, and the drift per layer."""
    norms, steps = results.distinct("norm"), results[0].values["step"]
    drift = [
        row
        for norm in norms
        for row in plots.bands(
            [
                (
                    {"norm": plots.label(norm), "layer": layer + 1},
                    [path(runs, norm, layer) for runs in results.by_seed()],
                )
                for layer in range(layers(results))
            ],
            top=None,
        )
    ]
    numbers = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))
    return [
        plots.Chart(
            "distributions", "What enters the activations, step by step",
            "Move the slider: on the left the hills wander and widen, on the right they keep their place. "
            "Histograms over units and test samples of one seed, layer above layer, heights by the square root; "
            f"the outermost bars hold what lies beyond ±{EDGE:g}.",
            histograms(results.by_seed()[0], norms),
            plots.Slider("position", tuple(f"step {step:,}" for step in steps)),
        ),
        plots.Chart(
            "distributions_drift", "Drift per layer",
            "See how the two lines part towards the last layer, which sits on all the others. "
            "Sum over the snapshots of the change of each unit's mean, in standard deviations, with 95 % intervals.",
            plots.curves(drift, norms, numbers, "distance drifted", domain=None, form="~g"),
        ),
    ]  # fmt: skip


APART = 2 * EDGE + 2  # from the middle of the left panel to that of the right one


def histograms(runs: Results, norms: list[str]) -> alt.LayerChart:
    """A ridge per layer, the norms side by side; the chart's parameter ``position`` picks the step."""
    width = 2 * EDGE / BINS
    tallest = max(max(d) for r in runs for step in r.values["density"] for d in step)
    shift = {norm: APART * i for i, norm in enumerate(norms)}
    rows: list[dict[str, Any]] = [
        {"i": i, "layer": layer + 1, "norm": plots.label(run.setting.norm),
         "x": round(shift[run.setting.norm] - EDGE + (b + 0.5) * width, 4),
         "top": round(layer + 1 + 0.9 * (share / tallest) ** 0.5, 3)}
        for run in runs
        for i, step in enumerate(run.values["density"])
        for layer, density in enumerate(step)
        for b, share in enumerate(density)
    ]  # fmt: skip
    top = layers(runs) + 1
    position = alt.param(name="position", value=len(runs[0].values["step"]) - 1)
    ticks = [offset + x for offset in shift.values() for x in (-4, -2, 0, 2, 4)]
    # Both panels lie on one axis; its labels start again in each.
    wrapped = f"format(datum.value - {APART:g} * round(datum.value / {APART:g}), 'd')"
    x = alt.X("x:Q", title="input of the activation", axis=alt.Axis(values=ticks, labelExpr=wrapped, grid=False),
              scale=alt.Scale(domain=[-EDGE, max(shift.values()) + EDGE], nice=False))  # fmt: skip
    scale = alt.Scale(domain=[1, top + 0.25], nice=False)
    color = plots.series(norms, legend=False)["color"]
    base = alt.Chart(alt.InlineData(values=rows)).transform_filter("datum.i == position").encode(
        x=x, y=alt.Y("layer:Q", title="layer", axis=alt.Axis(values=list(range(1, top)), format="d"), scale=scale),
        y2="top:Q", color=color, detail=["layer:N", "norm:N"],
    )  # fmt: skip
    ridges = base.mark_area(opacity=0.6, interpolate="monotone").add_params(position)
    heads = [{"norm": plots.label(norm), "x": at, "y": top + 0.1} for norm, at in shift.items()]
    names = alt.Chart(alt.InlineData(values=heads)).mark_text(fontSize=13, fontWeight="bold")
    names = names.encode(x=x, y=alt.Y("y:Q", scale=scale), text="norm:N", color=color)
    middles = alt.Chart(alt.InlineData(values=heads)).mark_rule(strokeDash=[2, 3], color="#7F7F7F").encode(x=x)
    return plots.sized(alt.layer(middles, ridges, names), 340)  # type: ignore[no-any-return]


EXPERIMENT = Experiment(
    name="distributions",
    question=QUESTIONS["distributions"],
    how="The paper's network: three hidden layers of {width} sigmoids, initial deviation {init}, batches of {batch}, "
    "{steps} steps at learning rate {rate}. At each snapshot the test samples go through in evaluation mode. "
    "{seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(4, 8),
)
