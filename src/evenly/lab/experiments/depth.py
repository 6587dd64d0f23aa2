"""Can it be deeper?"""

from __future__ import annotations

import altair as alt

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, at_most
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

TRAINS = 0.9
DEEP = 12  # layers from which on only the normalised network is expected to train


def settings(full: bool) -> list[Setting]:
    """From 3 to 30 hidden layers."""
    depths = (3, 5, 8, 12, 16, 20, 25, 30) if full else (3, 6, 12, 20, 30)
    return [
        Setting(norm=norm, depth=depth, width=50, steps=800 if full else 250)
        for norm in ("none", "batch")
        for depth in depths
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The final test accuracy."""
    return {"accuracy": accuracy(trained(setting, seed, data), data.test)}


def deepest(runs: Results) -> float:
    """The deepest network that trains, with all shallower ones training too; 0 where not even the shallowest does."""
    found = 0
    for run in sorted(runs, key=lambda r: r.setting.depth):
        if run.values["accuracy"] < TRAINS:
            break
        found = run.setting.depth
    return float(found)


def judge(results: Results) -> list[Verdict]:
    """Where the plain network stops, what the other does there, and by how many layers they differ."""

    def at(runs: Results, norm: str) -> list[float]:
        return [float(a) for a in runs.where(lambda r: r.setting.depth >= DEEP, norm=norm).of("accuracy")]

    return [
        at_most(
            f"Without a norm, networks of {DEEP} layers and more do not train",
            "its highest final accuracy over these depths",
            results.interval(lambda runs: max(at(runs, "none")), "accuracy"),
            TRAINS,
        ),
        at_least(
            f"With batch normalization a network of {DEEP} layers trains",
            "its final accuracy",
            results.where(depth=DEEP).interval(lambda runs: runs.where(norm="batch")[0].values["accuracy"], "accuracy"),
            TRAINS,
        ),
        at_least(
            "Networks deeper by five layers or more train with batch normalization",
            f"greatest depth reaching {TRAINS:.0%}, normalised minus plain, in layers",
            results.interval(lambda runs: deepest(runs.where(norm="batch")) - deepest(runs.where(norm="none"))),
            5.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against depth."""
    rows = plots.grouped(results, "depth", lambda r: r.values["accuracy"])
    depths = alt.X("depth:Q", title="hidden layers", axis=alt.Axis(values=results.distinct("depth")))
    chart = plots.curves(rows, results.distinct("norm"), depths, "final test accuracy", goal=TRAINS)
    return [plots.Chart(
        "depth", "Final accuracy by depth",
        "See where each line falls below the dotted one: the plain network within the first few depths, the "
        "normalised one much later. Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="depth",
    question=QUESTIONS["depth"],
    how="{depth} hidden layers of {width} {activation} units without shortcuts, torch's default weights, batches of "
    "{batch}, {steps} steps at learning rate {rate}. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(4, 8),
)
