"""Is the bias before it redundant?"""

from __future__ import annotations

from typing import Any

import altair as alt
from torch import nn

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, exactly, within
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, moments_of_progress, training

ROUNDING = 1e-5  # of float32 sums over a batch, beside the gradient of the weight


def settings(full: bool) -> list[Setting]:
    """With and without the bias before the norm; and a plain network, whose bias matters."""
    steps = 1000 if full else 250
    return [Setting(norm=norm, bias=bias, steps=steps) for norm, bias in
            (("none", True), ("batch", True), ("batch", False))]  # fmt: skip


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The largest gradient of a hidden bias beside that of its weight, along the way; the accuracy; the parameters."""
    values: Values = {"step": [], "ratio": []}
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 16, first=2)):
        values["step"].append(step)
        values["ratio"].append(_largest_ratio(network))
        if step == setting.steps:
            values["accuracy"] = accuracy(network, data.test)
            values["parameters"] = sum(p.numel() for p in network.parameters())
    return values


def _largest_ratio(network: nn.Module) -> float:
    hidden = [m for m in network.modules() if isinstance(m, nn.Linear)][:-1]
    return max(
        (float(m.bias.grad.abs().max() / m.weight.grad.abs().max()) for m in hidden
         if m.bias is not None and m.bias.grad is not None and m.weight.grad is not None),
        default=0.0,
    )  # fmt: skip


def judge(results: Results) -> list[Verdict]:
    """The gradient, the result without it, and the contrast."""

    def final(runs: Results, bias: bool) -> float:
        return float(runs.where(norm="batch", bias=bias)[0].values["accuracy"])

    return [
        exactly(
            "The bias before a batch norm gets no gradient but rounding",
            "its largest gradient over that of the weight",
            [ratio for run in results.where(norm="batch", bias=True) for ratio in run.values["ratio"]],
            ROUNDING,
        ),
        at_least(
            "The same bias in the plain network does get a gradient",
            "its smallest gradient over that of the weight, along the way",
            results.where(norm="none").interval(lambda runs: min(runs[0].values["ratio"])),
            0.01,
        ),
        within(
            "Without that bias training ends at the same accuracy, to one point",
            "final accuracy, with minus without",
            results.interval(lambda runs: final(runs, True) - final(runs, False), "points"),
            0.01,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """The gradient along the way, with and without a norm."""
    rows = [
        {"norm": plots.label(r.setting.norm), "seed": r.seed, "step": step, "ratio": max(ratio, 1e-12)}
        for r in results.where(bias=True)
        for step, ratio in zip(r.values["step"], r.values["ratio"], strict=True)
    ]
    look = plots.series(results.distinct("norm"), legend=False)
    scale = alt.Scale(type="log", domainMin=1e-9, clamp=True)
    axis = alt.Axis(format="~e", tickCount=6)
    lines = alt.Chart(alt.InlineData(values=rows)).mark_line(strokeWidth=1.6)
    x = plots.log_axis("step", "training step", results[0].values["step"])
    chart = lines.encode(
        x=x,
        y=alt.Y("ratio:Q", title="gradient of the bias over the weight's", scale=scale, axis=axis),
        detail="seed:N",
        **look,
    )
    names = alt.Chart(alt.InlineData(values=_names(rows))).mark_text(align="left", dx=7, fontSize=12, fontWeight="bold")
    names = names.encode(x=x, y=alt.Y("ratio:Q", scale=scale), text="norm:N", color=look["color"])
    before, after = (results.where(norm="batch", bias=bias)[0].values["parameters"] for bias in (True, False))
    return [plots.Chart(
        "bias", "Gradient of the bias before the norm",
        "The upper lines, of the network without a norm, stay at the size of the weight's own gradient; the lower ones "
        "lie a million times deeper, where float32 rounds. One line per seed. "
        f"The normalised network has {before:,} parameters with that bias and {after:,} without.",
        plots.sized(chart + names),
    )]  # fmt: skip


def _names(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per norm at the end of its lines."""
    return [
        max((row for row in rows if row["norm"] == norm), key=lambda row: row["step"])
        for norm in dict.fromkeys(row["norm"] for row in rows)
    ]


EXPERIMENT = Experiment(
    name="bias",
    question=QUESTIONS["bias"],
    how="Three hidden layers of {width} {activation} units, batches of {batch}, {steps} steps at learning rate {rate}. "
    "The mean that a batch norm subtracts takes the bias of the layer before with it: three parameters per unit "
    "learn, not four. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(10, 10),
)
