"""Why not in recurrent networks?"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice

import torch
from torch import nn

from evenly.lab import plots
from evenly.lab.data import Dataset, Split
from evenly.lab.experiment import Experiment, Result, Results, Values
from evenly.lab.judge import Verdict, at_least, at_most
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, batches, moments_of_progress, training

FEWEST = 4  # sequences left at a step for its own statistics to be used, where the setting asks for that
WAYS = {
    "none": Setting(norm="none"),
    "layer": Setting(norm="layer"),
    "batch": Setting(norm="batch"),
    "batch, no masks": Setting(norm="batch", masked=False),
    f"batch, {FEWEST} or more": Setting(norm="batch", fewest=FEWEST),
    "batch, on inputs": Setting(norm="batch", place="inputs"),
}
MASKED, UNMASKED, ENOUGH, INPUTS = list(WAYS)[2:]


def settings(full: bool) -> list[Setting]:
    """No norm, layer norm, and batch norm in four ways."""
    return [
        replace(way, data="vowels", network="recurrent", activation="tanh", depth=1, width=48,
                rate=0.3, batch=30, steps=800 if full else 250)
        for way in WAYS.values()
    ]  # fmt: skip


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Test accuracy along the way; at the end also by the statistics of each test batch."""
    values: Values = {"step": [], "accuracy": []}
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 12, first=5)):
        values["step"].append(step)
        values["accuracy"].append(accuracy(network, data.test))
        if step == setting.steps:
            values["by batch"] = accuracy_by_batch(network, data.test, setting.batch, seed)
    return values


def accuracy_by_batch(network: nn.Module, split: Split, size: int, seed: int) -> float:
    """Accuracy in random batches, each normalised by its own statistics as in training; the uneven rest is left out."""
    network = copy.deepcopy(network).train()
    with torch.no_grad():
        parts = islice(batches(split, size, seed), len(split) // size)
        right = [network(*part.inputs).argmax(1) == part.y for part in parts]
    return float(torch.cat(right).double().mean())


def name_of(result: Result) -> str:
    """The key of `WAYS` that a result stands for."""
    return next(name for name, way in WAYS.items() if _way(way) == _way(result.setting))


def _way(setting: Setting) -> tuple[object, ...]:
    return setting.norm, setting.masked, setting.fewest, setting.place


def final(runs: Results, name: str) -> float:
    """The accuracy at the end."""
    return float(runs.split(name_of)[name][0].values["accuracy"][-1])


def by_batch(runs: Results, name: str) -> float:
    """The accuracy at the end, by each batch's own statistics."""
    return float(runs.split(name_of)[name][0].values["by batch"])


def judge(results: Results) -> list[Verdict]:
    """Layer norm against batch norm, masks against none, where the loss comes from, and what avoids it."""
    return [
        at_least(
            "In a recurrent network layer norm beats batch norm by a point or more",
            "final accuracy, layer minus batch with masks",
            results.interval(lambda runs: final(runs, "layer") - final(runs, MASKED), "points"),
            0.01,
        ),
        at_least(
            "Keeping the steps beyond a sequence's end out of the statistics gains a point or more",
            "final accuracy of batch norm, with masks minus without",
            results.interval(lambda runs: final(runs, MASKED) - final(runs, UNMASKED), "points"),
            0.01,
        ),
        at_most(
            "With masks, a point or more is lost in training already, not in the running average",
            "final accuracy by the statistics of each test batch, with masks minus without",
            results.interval(lambda runs: by_batch(runs, MASKED) - by_batch(runs, UNMASKED), "points"),
            -0.01,
        ),
        at_least(
            f"It is lost at steps with fewer than {FEWEST} sequences left: given the running statistics there, "
            "the network with masks gains ten points or more",
            f"final accuracy with masks, own statistics from {FEWEST} sequences on minus always",
            results.interval(lambda runs: final(runs, ENOUGH) - final(runs, MASKED), "points"),
            0.1,
        ),
        at_least(
            "On the inputs, outside the recurrence and over all steps at once, batch norm with masks does at least "
            "as well as layer norm, to one point",
            "final accuracy, batch on the inputs minus layer",
            results.interval(lambda runs: final(runs, INPUTS) - final(runs, "layer"), "points"),
            -0.01,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Accuracy against steps."""
    lines = results.split(name_of)
    rows = [row for name, runs in lines.items() for row in plots.along(runs, name)]
    steps = plots.log_axis("step", "training step", results[0].values["step"])
    chart = plots.curves(rows, list(lines), steps, points=False)
    return [plots.Chart(
        "sequence", "Vowels: test accuracy",
        "See the right end: layer norm and batch norm outside the recurrence learn; inside it batch norm lags and "
        f"wavers. “{ENOUGH}”: only steps with so many sequences left use their own statistics. "
        "Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="sequence",
    question=QUESTIONS["sequence"],
    how="A recurrent network of {width} tanh units reads the vowels, 7 to 29 steps each; the norm stands inside the "
    "recurrence, h = tanh(norm(W x + U h)), and one set of running statistics serves all steps. Batch norm has masks "
    "that keep the steps beyond a sequence's end out, or none; or leaves steps at which few sequences are left to the "
    "running statistics; or stands on the inputs, h = tanh(norm(W x) + U h). Batches of {batch}, {steps} steps at "
    "learning rate {rate}. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(4, 8),
)
