"""Can it be deeper?"""

from __future__ import annotations

import altair as alt

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

TRAINS = 0.9


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
    """The deepest network that trains, with all shallower ones training too; 1 where not even the shallowest does."""
    found = 1
    for run in sorted(runs, key=lambda r: r.setting.depth):
        if run.values["accuracy"] < TRAINS:
            break
        found = run.setting.depth
    return float(found)


def judge(results: Results) -> list[Verdict]:
    """The ratio of the greatest depths."""
    return [
        at_least(
            "Networks twice as deep or deeper train with batch normalization",
            f"greatest depth reaching {TRAINS:.0%}, normalised over plain",
            results.interval(lambda runs: deepest(runs.where(norm="batch")) / deepest(runs.where(norm="none")), "×"),
            2.0,
        )
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against depth."""
    rows = plots.grouped(results, "depth", lambda r: r.values["accuracy"])
    depths = alt.X("depth:Q", title="hidden layers", axis=alt.Axis(values=results.distinct("depth")))
    chart = plots.curves(rows, results.distinct("norm"), depths, "final test accuracy")
    return [plots.Chart("depth", "Final accuracy by depth", "Means over seeds with 95 % intervals.", chart)]


EXPERIMENT = Experiment(
    name="depth",
    question="Can it be deeper?",
    how="{depth} hidden layers of {width} {activation} units without shortcuts, torch's default weights, batches of "
    "{batch}, {steps} steps at learning rate {rate}. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(4, 8),
)
