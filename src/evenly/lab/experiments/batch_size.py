"""How small may a batch be?"""

from __future__ import annotations

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

GHOST = 16  # samples that share statistics where ghost batches are used


def settings(full: bool) -> list[Setting]:
    """Seven ways over batch sizes, each seeing as many samples; the rate grows with the root of the batch."""
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256) if full else (1, 2, 4, 16, 64, 256)
    samples = 12_000 if full else 3000
    made = []
    for norm in ("none", "batch", "ghost", "renorm", "layer", "group", "instance"):
        for size in sizes:
            if norm != "ghost" or size > GHOST:
                made.append(Setting(
                    network="convolutional", norm=norm, depth=2, width=16, batch=size, ghosts=max(size // GHOST, 1),
                    rate=round(0.02 * size**0.5, 4), steps=max(samples // size, 40),
                ))  # fmt: skip
    return made


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The final test accuracy."""
    return {"accuracy": accuracy(trained(setting, seed, data), data.test)}


def ahead(results: Results, norm: str, other: str, batch: int) -> Verdict:
    """Whether one norm ends at least as high as another, for one batch size."""
    return at_least(
        f"With batches of {batch}, the accuracy with {plots.label(norm)} is at least that with {plots.label(other)}",
        f"final accuracy, {plots.label(norm)} minus {plots.label(other)}",
        results.where(batch=batch).interval(
            lambda runs: runs.where(norm=norm)[0].values["accuracy"] - runs.where(norm=other)[0].values["accuracy"],
            "points",
        ),
        0.0,
    )


def judge(results: Results) -> list[Verdict]:
    """A batch of one, small batches, large batches, and the two remedies."""
    return [
        at_least(
            "With batches of one sample, batch norm ends ten points or more behind group norm",
            "final accuracy, group norm minus batch norm",
            results.where(batch=1).interval(
                lambda runs: (
                    runs.where(norm="group")[0].values["accuracy"] - runs.where(norm="batch")[0].values["accuracy"]
                ),
                "points",
            ),
            0.1,
        ),
        ahead(results, "group", "batch", 2),
        ahead(results, "batch", "group", 64),
        ahead(results, "renorm", "batch", 4),
        ahead(results, "ghost", "batch", 256),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against the batch size."""
    rows = plots.grouped(results, "batch", lambda r: r.values["accuracy"])
    sizes = results.distinct("batch")
    chart = plots.curves(rows, results.distinct("norm"), plots.log_axis("batch", "samples in a batch", sizes),
                         "final test accuracy")  # fmt: skip
    return [plots.Chart(
        "batch_size", "Final accuracy by batch size",
        "See batch norm at the left edge: with one sample in a batch it falls to the bottom, while the norms that need "
        "no batch stay. Every run sees the same number of samples, so all lines fall to the right, where few steps are "
        f"left. Ghost batches share statistics among {GHOST} samples. Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="batch_size",
    question=QUESTIONS["batch_size"],
    how="A convolutional network of {depth} layers with {width} channels; batches of {batch} samples. Each run sees "
    "the same number of samples (but takes 40 steps or more), at a learning rate of 0.02 times the root of the batch "
    "size. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(3, 5),
    pictures=True,
)
