"""The worked example: 30 samples, batches of 5, every number of one epoch."""

from __future__ import annotations

from typing import Any

import altair as alt

from evenly.lab import explain as example
from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Interval, Verdict, within
from evenly.lab.setting import Setting

ROUNDING = 1e-12  # the example runs in float64


def settings(full: bool) -> list[Setting]:
    """The example is one: its network, samples and rate are fixed in `evenly.lab.explain`."""
    return [Setting(norm="batch", depth=2, width=2, rate=example.RATE, batch=5, steps=6)]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Six means and deviations, their running averages, and how far three identities are off."""
    epoch = example.epoch()
    steps = epoch.steps
    before = [[0.0, 0.0], *(step.running_mean for step in steps)]
    momentum = example.MOMENTUM
    return {
        "mean": [step.mean for step in steps],
        "std": [step.std for step in steps],
        "running_mean": [step.running_mean for step in steps],
        "bias_gradient": [max(map(abs, step.linear_bias_grad)) for step in steps],
        "average_off": [
            max(
                abs((1 - momentum) * r0 + momentum * m - r)
                for r0, m, r in zip(old, s.mean, s.running_mean, strict=True)
            )
            for old, s in zip(before, steps, strict=False)
        ],
        "alone": epoch.prediction.alone,
        "alone_off": [abs(answer - epoch.prediction.alone) for answer in epoch.prediction.among],
    }


def judge(results: Results) -> list[Verdict]:
    """Three identities, each over the six batches."""
    (run,) = results.by_seed()[0]
    return [
        within(claim, about, Interval.of(run.values[name]), ROUNDING)
        for claim, about, name in (
            ("The bias before the norm has gradient zero", "its largest gradient, over six batches", "bias_gradient"),
            (
                f"The running mean is {1 - example.MOMENTUM:g} of the old and {example.MOMENTUM:g} of the batch's",
                "distance from the formula, over six batches", "average_off",
            ),
            (
                "One sample alone is predicted as inside any batch",
                "difference of the prediction, over six batches", "alone_off",
            ),
        )
    ]  # fmt: skip


def charts(results: Results) -> list[plots.Chart]:
    """Six means and their running average, for both neurons."""
    values = results[0].values
    rows: list[dict[str, Any]] = [
        {"batch": i + 1, "neuron": f"neuron {n + 1}", "mean": mean, "running": running}
        for i, (means, averages) in enumerate(zip(values["mean"], values["running_mean"], strict=True))
        for n, (mean, running) in enumerate(zip(means, averages, strict=True))
    ]
    look = plots.series(["neuron 1", "neuron 2"], field="neuron")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("batch:O", title="batch", axis=alt.Axis(labelAngle=0)), color=look["color"]
    )
    chart = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=alt.Y("mean:Q", title="mean of the first layer's neurons")
    ) + base.mark_line(strokeWidth=2).encode(y="running:Q", strokeDash=look["strokeDash"])
    return [plots.Chart(
        "explain", "Six means and their running average",
        "Dots are the batches' means, lines the running mean, which starts at 0; evenly explain prints every number.",
        plots.sized(chart),
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="explain",
    question="What happens in one epoch, number by number?",
    how="A network of three layers on 30 samples in batches of {batch}, {steps} steps, in float64; it has no "
    "randomness, so the interval is over the six batches.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(1, 1),
)
