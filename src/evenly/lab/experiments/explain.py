"""The worked example: 30 samples, batches of 5, every number of one epoch."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import altair as alt
import torch

import evenly
from evenly.lab import explain as example
from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, exactly
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting

ROUNDING = 1e-12  # the example runs in float64
UNDONE = 1e-9  # float64 again, through a division by sqrt(var + eps)
EPS = 1e-5  # of the example's norms
SPREADS = [10.0 ** (i / 4) for i in range(-20, 5)]  # deviations of a batch, from 1e-5 to 10


def settings(full: bool) -> list[Setting]:
    """The example is one: its network, samples and rate are fixed in `evenly.lab.explain`."""
    return [Setting(norm="batch", depth=2, width=2, rate=example.RATE, batch=5, steps=6)]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Six means and deviations, their running averages, and how far each identity is off."""
    epoch = example.epoch()
    steps, asked, momentum = epoch.steps, epoch.prediction, example.MOMENTUM
    before = [[0.0, 0.0], *(step.running_mean for step in steps)]
    kept = ("z", "xhat", "mean", "std", "weight", "bias", "running_mean")
    return {
        **{name: [getattr(step, name) for step in steps] for name in kept},
        "mean_off": [abs(fmean(column)) for step in steps for column in zip(*step.xhat, strict=True)],
        "std_off": [
            abs(pstdev(column) - std / (std**2 + epoch.eps) ** 0.5)
            for step in steps
            for column, std in zip(zip(*step.xhat, strict=True), step.std, strict=True)
        ],
        "undone_off": [undone(step.z) for step in steps],
        "spread": [normalized_spread(spread) for spread in SPREADS],
        "bias_gradient": [max(map(abs, step.linear_bias_grad)) for step in steps],
        "average_off": [
            abs((1 - momentum) * r0 + momentum * m - r)
            for old, s in zip(before, steps, strict=False)
            for r0, m, r in zip(old, s.mean, s.running_mean, strict=True)
        ],
        "alone": asked.alone,
        "among": asked.among,
        "training": asked.training,
        "alone_off": [abs(answer - asked.alone) for answer in asked.among],
    }


@torch.no_grad()
def undone(z: list[list[float]]) -> float:
    """How far a batch norm whose weight is the batch's deviation and whose bias its mean is from doing nothing."""
    x = torch.tensor(z, dtype=torch.float64)
    norm = evenly.BatchNorm1d(x.shape[1]).double()
    norm.weight.copy_((x.var(0, correction=0) + norm.eps).sqrt())
    norm.bias.copy_(x.mean(0))
    return float((norm(x) - x).abs().max())


@torch.no_grad()
def normalized_spread(spread: float) -> float:
    """The deviation, after the norm, of five values that have deviation ``spread`` before it."""
    x = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5], dtype=torch.float64)[:, None] * spread
    return float(evenly.BatchNorm1d(1).double()(x).std(correction=0))


CHECKS = (
    ("In each batch every normalised neuron has mean 0", "its mean, two neurons in six batches", "mean_off", ROUNDING),
    (
        "Its standard deviation is std / sqrt(std² + ε): nearly 1, and never a division by zero",
        "distance from that, two neurons in six batches", "std_off", ROUNDING,
    ),
    (
        "A weight γ of the batch's deviation and a bias β of its mean undo the norm",
        "distance of the output from the input, over six batches", "undone_off", UNDONE,
    ),
    ("The bias before the norm has gradient zero", "its gradient, over six batches", "bias_gradient", ROUNDING),
    (
        f"The running mean is {1 - example.MOMENTUM:g} of the old and {example.MOMENTUM:g} of the batch's",
        "distance from the formula, two neurons in six batches", "average_off", ROUNDING,
    ),
    (
        "One sample alone is predicted as inside any batch",
        "difference of the prediction, over six batches", "alone_off", ROUNDING,
    ),
)  # fmt: skip


def judge(results: Results) -> list[Verdict]:
    """Identities of the formulas, each over the six batches."""
    (run,) = results.by_seed()[0]
    return [exactly(claim, about, run.values[name], rounding) for claim, about, name, rounding in CHECKS]


def charts(results: Results) -> list[plots.Chart]:
    """What the norm does to a batch, ε, γ and β; the running mean; the prediction."""
    values = results[0].values
    return [standardized(values), epsilon(values), learned(values), running(values), alone(values)]


def _batches() -> alt.X:
    return alt.X("batch:Q", title="batch", axis=alt.Axis(values=list(range(1, 7)), format="d"))


def _names(rows: list[dict[str, Any]]) -> alt.Chart:
    named: alt.Chart = alt.Chart(alt.InlineData(values=rows)).mark_text(
        align="left", dx=9, fontSize=12, fontWeight="bold"
    )
    return named


def standardized(values: Values) -> plots.Chart:
    """Six batches of one neuron before and after the norm."""
    kinds = {"z": "before: z of neuron 1", "xhat": "after: normalised"}
    rows = [
        {"batch": i + 1, "value": round(row[0], 4), "what": what}
        for name, what in kinds.items()
        for i, batch in enumerate(values[name])
        for row in batch
    ]
    scale = alt.Scale(domain=list(kinds.values()), range=[plots.COLORS["none"], plots.USUAL])
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("value:Q", title="value"),
        y=alt.Y("batch:O", title="batch"),
        color=alt.Color("what:N", title=None, scale=scale, legend=alt.Legend(symbolType="circle")),
    )
    return plots.Chart(
        "explain_standardized", "Six batches before and after the norm",
        "See the dots on the right change place and spread from batch to batch, batch 4 above all; those on the left "
        "stand around 0 with deviation 1 in each.",
        plots.sized(base.mark_point(filled=True, size=70, opacity=0.8), 220),
    )  # fmt: skip


def epsilon(values: Values) -> plots.Chart:
    """The deviation after the norm against that before it."""
    rows = [{"x": x, "norm": "batch norm", "value": y} for x, y in zip(SPREADS, values["spread"], strict=True)]
    axis = plots.log_axis("x", "standard deviation of the batch", SPREADS)
    mark = alt.Chart(alt.InlineData(values=[{"x": EPS**0.5, "words": "√ε"}])).encode(x=axis)
    rule = mark.mark_rule(strokeDash=[2, 3], color=plots.SOFT)
    text = mark.mark_text(align="left", dx=5, fontSize=13, color=plots.SOFT).encode(text="words:N", y=alt.value(12))
    line = plots.curves(rows, ["batch"], axis, "deviation after the norm", domain=None, form="~g")
    return plots.Chart(
        "explain_epsilon", "What ε does",
        f"See the plateau: whatever the deviation, the norm makes 1 of it. Only below √ε, here the root of {EPS:g}, "
        "does ε win, and equal values become zeros, without a division by zero.",
        plots.sized(alt.layer(rule, text, line), 220), half=True,
    )  # fmt: skip


def learned(values: Values) -> plots.Chart:
    """The norm's weight and bias before each step."""
    rows: list[dict[str, Any]] = [
        {"batch": i + 1, "neuron": f"neuron {n + 1}", "value": round(value, 4), "what": what, "line": f"{what}{n}"}
        for what, name in (("γ", "weight"), ("β", "bias"))
        for i, pair in enumerate(values[name])
        for n, value in enumerate(pair)
    ]
    color = plots.series(["neuron 1", "neuron 2"], field="neuron", legend=False)["color"]
    x, y = _batches(), alt.Y("value:Q", title="γ and β")
    lines = alt.Chart(alt.InlineData(values=rows)).mark_line(point=True, strokeWidth=2)
    heads = [{**row, "words": f"{row['what']}, {row['neuron']}"} for row in rows if row["batch"] == 6]
    heads.sort(key=lambda row: float(row["value"]))
    for low, high in pairwise(heads):
        high["value"] = max(high["value"], low["value"] + 0.09)  # room for each name
    names = _names(heads).encode(x=x, y=y, text="words:N", color=color)
    return plots.Chart(
        "explain_learned", "γ and β while they are learned",
        "See two lines start at 1, the weights γ, and two at 0, the biases β: gradient descent moves them from the "
        "first batch on.",
        plots.sized(lines.encode(x=x, y=y, detail="line:N", color=color) + names, 220), half=True,
    )  # fmt: skip


def running(values: Values) -> plots.Chart:
    """Six means and their running average, for both neurons."""
    rows: list[dict[str, Any]] = [
        {"batch": i + 1, "neuron": f"neuron {n + 1}", "mean": mean, "running": average}
        for i, (means, averages) in enumerate(zip(values["mean"], values["running_mean"], strict=True))
        for n, (mean, average) in enumerate(zip(means, averages, strict=True))
    ]
    color = plots.series(["neuron 1", "neuron 2"], field="neuron", legend=False)["color"]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=_batches(), color=color)
    dots = base.mark_point(filled=True, size=90, opacity=1)
    names = _names(rows[-2:]).encode(x=_batches(), y="running:Q", text="neuron:N", color=color)
    return plots.Chart(
        "explain", "Six means and their running average",
        "See the line of neuron 1 climb towards its dots: the running mean starts at 0 and takes a tenth of each "
        "batch's mean, so after six batches it is about halfway. Dots are the batches' means.",
        plots.sized(
            dots.encode(y=alt.Y("mean:Q", title="mean of the first layer's neurons"))
            + base.mark_line(strokeWidth=2).encode(y="running:Q")
            + names
        ),
    )  # fmt: skip


def alone(values: Values) -> plots.Chart:
    """The answer for one sample in seven companies, in evaluation and in training."""
    kinds = {"among": "evaluation: running average", "training": "training: the batch's own statistics"}
    rows = [
        {"company": f"with batch {i + 1}", "answer": round(answer, 4), "mode": mode}
        for name, mode in kinds.items()
        for i, answer in enumerate(values[name])
    ] + [{"company": "alone", "answer": round(values["alone"], 4), "mode": kinds["among"]}]
    colors = alt.Scale(domain=list(kinds.values()), range=[plots.USUAL, plots.COLORS["batch statistics"]])
    legend = alt.Legend(symbolType="circle", labelLimit=300)
    chart = alt.Chart(alt.InlineData(values=rows)).mark_point(filled=True, size=90, opacity=1)
    chart = chart.encode(
        x=alt.X("answer:Q", title="the network's answer for the sample (6, 5)", scale=alt.Scale(zero=False)),
        y=alt.Y("company:N", title=None, sort=["alone", *(f"with batch {i}" for i in range(1, 7))]),
        color=alt.Color("mode:N", title=None, legend=legend, scale=colors),
    )
    return plots.Chart(
        "explain_alone", "One sample, in seven companies",
        "See one column of dots: in evaluation the answer is the same in every company, alone too. In training it "
        "changes with the company, and alone there is none.", plots.sized(chart, 220),
    )  # fmt: skip


EXPERIMENT = Experiment(
    name="explain",
    question=QUESTIONS["explain"],
    how="A network of three layers on 30 samples in batches of {batch}, {steps} steps, in float64; it has no "
    "randomness, so its claims are exact checks, and no interval is needed.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(1, 1),
)
