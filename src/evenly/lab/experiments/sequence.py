"""Why not in recurrent networks?"""

from __future__ import annotations

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Result, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, moments_of_progress, training


def settings(full: bool) -> list[Setting]:
    """No norm, layer norm, and batch norm with and without masks for the steps beyond a sequence's end."""
    return [
        Setting(data="vowels", network="recurrent", norm=norm, masked=masked, activation="tanh", depth=1, width=48,
                rate=0.3, batch=30, steps=800 if full else 250)
        for norm, masked in (("none", True), ("layer", True), ("batch", True), ("batch", False))
    ]  # fmt: skip


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Test accuracy along the way."""
    values: Values = {"step": [], "accuracy": []}
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 12, first=5)):
        values["step"].append(step)
        values["accuracy"].append(accuracy(network, data.test))
    return values


def name_of(result: Result) -> str:
    """What a line of the chart is called."""
    unmasked = result.setting.norm == "batch" and not result.setting.masked
    return "batch, no masks" if unmasked else result.setting.norm


def final(runs: Results, name: str) -> float:
    """The accuracy at the end."""
    return float(runs.split(name_of)[name][0].values["accuracy"][-1])


def judge(results: Results) -> list[Verdict]:
    """Layer norm against batch norm, and masks against none."""
    return [
        at_least(
            "In a recurrent network layer norm beats batch norm by a point or more",
            "final accuracy, layer minus batch with masks",
            results.interval(lambda runs: final(runs, "layer") - final(runs, "batch"), "points"),
            0.01,
        ),
        at_least(
            "Keeping the steps beyond a sequence's end out of the statistics gains a point or more",
            "final accuracy of batch norm, with masks minus without",
            results.interval(lambda runs: final(runs, "batch") - final(runs, "batch, no masks"), "points"),
            0.01,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Accuracy against steps."""
    lines = results.split(name_of)
    rows = [row for name, runs in lines.items() for row in plots.along(runs, name)]
    chart = plots.curves(rows, list(lines), plots.steps_axis(log=True), points=False)
    return [plots.Chart("sequence", "Vowels: test accuracy", "Means over seeds with 95 % intervals.", chart)]


EXPERIMENT = Experiment(
    name="sequence",
    question="Why not in recurrent networks?",
    how="A recurrent network of {width} tanh units reads the vowels, 7 to 29 steps each; the norm stands inside the "
    "recurrence, h = tanh(norm(W x + U h)), and one set of running statistics serves all steps. Batches of {batch}, "
    "{steps} steps at learning rate {rate}. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(4, 8),
)
