"""What does sharing statistics over processes bring?"""

from __future__ import annotations

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, within
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

BATCH = 32


def settings(full: bool) -> list[Setting]:
    """One batch over 1 to 16 processes, each with statistics of its own: ghosts are exactly that, in one process."""
    return [
        Setting(network="convolutional", norm="ghost", ghosts=parts, depth=2, width=16, batch=BATCH, rate=0.1,
                steps=800 if full else 250)
        for parts in ((1, 2, 4, 8, 16) if full else (1, 4, 16))
    ]  # fmt: skip


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The final test accuracy."""
    return {"accuracy": accuracy(trained(setting, seed, data), data.test)}


def gain(runs: Results, parts: int) -> float:
    """What sharing brings: accuracy with one set of statistics minus that with ``parts``."""
    shared, split = (runs.where(ghosts=n)[0].values["accuracy"] for n in (1, parts))
    return float(shared - split)


def judge(results: Results) -> list[Verdict]:
    """Few samples per process, and a moderate number."""
    return [
        at_least(
            "With 2 samples per process, sharing the statistics gains half a point or more",
            "final accuracy, shared minus split",
            results.interval(lambda runs: gain(runs, BATCH // 2), "points"),
            0.005,
        ),
        within(
            "With 8 samples per process, sharing makes no difference of a point",
            "final accuracy, shared minus split",
            results.interval(lambda runs: gain(runs, BATCH // 8), "points"),
            0.01,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against the samples that share statistics."""
    rows = plots.bands([
        ({"norm": plots.label("batch"), "samples": BATCH // parts}, results.where(ghosts=parts).of("accuracy"))
        for parts in results.distinct("ghosts")
    ])  # fmt: skip
    axis = plots.log_axis("samples", "samples that share statistics", [row["samples"] for row in rows])
    chart = plots.curves(rows, ["batch"], axis, "final test accuracy", domain=None)
    return [plots.Chart(
        "sync", "Final accuracy by samples per process",
        f"See the rise from left to right: with {min(r['samples'] for r in rows)} samples to share statistics the "
        f"network is worse; at {BATCH} all processes share, as synchronised batch norm lets them. "
        "Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="sync",
    question=QUESTIONS["sync"],
    how="A convolutional network, batches of {batch} spread over {ghosts} processes, each with statistics of its own "
    "(ghost batches in one process: the same numbers), {steps} steps at learning rate {rate}. What sharing costs in "
    "time depends on the network between the machines; benchmarks/sync.py measures it. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    pictures=True,
)
