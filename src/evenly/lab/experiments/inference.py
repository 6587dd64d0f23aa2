"""What does the running average cost or save when single samples are predicted?"""

from __future__ import annotations

import copy

import torch
from torch import nn

import evenly
from evenly.lab import plots
from evenly.lab.data import Dataset, Split
from evenly.lab.experiment import Experiment, Result, Results, Values
from evenly.lab.judge import Verdict, at_most, exactly, within
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, evaluating, training

# name -> (average, momentum): the running averages that are compared
AVERAGES: dict[str, tuple[str, float | None]] = {
    "momentum 0.01": ("ema", 0.01),
    "momentum 0.1": ("ema", 0.1),
    "momentum 0.5": ("ema", 0.5),
    "cumulative": ("ema", None),
    "debiased 0.01": ("debiased", 0.01),
}
EXACT, BATCH = "recalibrated", "batch statistics"
USUAL = "momentum 0.1"
SINGLE_SAMPLES = 64
ROUNDING = 1e-4  # of float32 scores of order 10, summed in another order


def settings(full: bool) -> list[Setting]:
    """One setting per average; training does not depend on it, so weights agree at every step."""
    return [
        Setting(norm="batch", momentum=momentum, average=average, steps=1000 if full else 300)
        for average, momentum in AVERAGES.values()
    ]


def name_of(setting: Setting) -> str:
    """The key of `AVERAGES` that a setting stands for."""
    return next(name for name, pair in AVERAGES.items() if pair == (setting.average, setting.momentum))


def by_average(results: Results, name: str) -> Results:
    """The cells of one running average."""
    return results.where(lambda r: name_of(r.setting) == name)


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Test accuracy along the way by the running average, by each batch's own statistics, and by exact ones."""
    values: Values = {"step": [], "running": [], "batch": [], "exact": []}
    steps = [s for s in (5, 10, 20, 50, 100, 200, 300, 500, 1000) if s <= setting.steps]
    for step, network in training(setting, seed, data, steps):
        values["step"].append(step)
        values["running"].append(accuracy(network, data.test))
        values["batch"].append(accuracy_by_batch(network, data.test, setting.batch))
        values["exact"].append(accuracy(recalibrated(network, data.train, setting.batch), data.test))
        if step == steps[-1]:
            values["single"] = single_against_batched(network, data.test)
    return values


def accuracy_by_batch(network: nn.Module, split: Split, size: int) -> float:
    """Accuracy where each test batch is normalised by its own statistics, as in training."""
    network = copy.deepcopy(network).train()
    with torch.no_grad():
        right = [network(*part.inputs).argmax(1) == part.y for part in _batches(split, size)]
    return float(torch.cat(right).double().mean())


def recalibrated(network: nn.Module, split: Split, size: int) -> nn.Module:
    """A copy whose running statistics are those of the training data under the present weights."""
    return evenly.recalibrate(copy.deepcopy(network), [part.inputs for part in _batches(split, size)])


def single_against_batched(network: nn.Module, split: Split) -> float:
    """The largest difference between a sample's scores alone and inside a batch."""
    part = split.take(torch.arange(min(SINGLE_SAMPLES, len(split))))
    with evaluating(network):
        together = network(*part.inputs)
        alone = torch.cat([network(*part.take(torch.tensor([i])).inputs) for i in range(len(part))])
    return float((alone - together).abs().max())


def _batches(split: Split, size: int) -> list[Split]:
    """All samples in batches of about ``size``, none of them small."""
    return [split.take(index) for index in torch.arange(len(split)).tensor_split(max(len(split) // size, 1))]


def judge(results: Results) -> list[Verdict]:
    """The usual average at the end, a slow one early on, and one sample alone."""
    usual, slow = by_average(results, USUAL), by_average(results, "momentum 0.01")
    return [
        exactly(
            "One sample alone gets the scores it gets inside any batch",
            "difference of a score, over all averages and seeds",
            results.of("single"),
            ROUNDING,
        ),
        within(
            "After training, the running average (momentum 0.1) is as good as exact statistics, to one point",
            "accuracy, running minus exact",
            usual.interval(lambda runs: runs[0].values["running"][-1] - runs[0].values["exact"][-1], "points"),
            0.01,
        ),
        at_most(
            "Early in training a slow average (momentum 0.01, Keras's 0.99) loses accuracy against exact statistics",
            f"accuracy at step {slow[0].values['step'][2]}, running minus exact",
            slow.interval(lambda runs: runs[0].values["running"][2] - runs[0].values["exact"][2], "points"),
            0.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Accuracy in evaluation against the steps trained, by the statistics used."""
    groups = []
    for name in AVERAGES:
        groups += _series(name, by_average(results, name).results, "running")
    usual = by_average(results, USUAL).results
    groups += _series(EXACT, usual, "exact") + _series(BATCH, usual, "batch")
    rows = plots.bands(groups)
    steps = plots.log_axis("step", "steps trained", usual[0].values["step"])
    chart = plots.curves(rows, [*AVERAGES, EXACT, BATCH], steps, "test accuracy in evaluation", field="statistics")
    return [plots.Chart(
        "inference", "Accuracy in evaluation, by the statistics used",
        "See the left half: all lines evaluate the same weights and differ in mean and variance only, so what lies "
        "below the upper lines is lost to a running average that has not arrived yet. "
        "Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


def _series(name: str, runs: list[Result], value: str) -> list[tuple[dict[str, object], list[float]]]:
    return [
        ({"statistics": name, "step": step}, [r.values[value][i] for r in runs])
        for i, step in enumerate(runs[0].values["step"])
    ]


EXPERIMENT = Experiment(
    name="inference",
    question=QUESTIONS["inference"],
    how="{depth} hidden layers of {width} {activation} units with batch normalization, batches of {batch}, {steps} "
    "steps at learning rate {rate}. On the way the same weights are evaluated with each running average, with the "
    "statistics of each test batch, and with statistics measured anew over the training data. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(8, 10),
    own=True,
)
