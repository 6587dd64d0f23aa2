"""Does it care less about initialization?"""

from __future__ import annotations

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, at_most
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

TRAINS = 0.9
SMALL = 0.01  # up to here, from the smallest scale, only the normalised network is expected to train


def settings(full: bool) -> list[Setting]:
    """Deviations of the initial weights from 0.001 to 10, two to a decade (four in the full form)."""
    per_decade = 4 if full else 2
    scales = [float(f"{10 ** (i / per_decade - 3):.3g}") for i in range(4 * per_decade + 1)]
    return [
        Setting(norm=norm, init=scale, steps=1000 if full else 300) for norm in ("none", "batch") for scale in scales
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The final test accuracy."""
    return {"accuracy": accuracy(trained(setting, seed, data), data.test)}


def small(runs: Results, norm: str) -> list[float]:
    """Final accuracies at the small scales."""
    return [float(a) for a in runs.where(lambda r: (r.setting.init or 0) <= SMALL, norm=norm).of("accuracy")]


def spread(runs: Results, norm: str) -> float:
    """How many of the scales train."""
    return float(sum(a >= TRAINS for a in runs.where(norm=norm).of("accuracy")))


def judge(results: Results) -> list[Verdict]:
    """Where the plain network does not train, and how far each goes."""
    return [
        at_least(
            "With initial weights of 0.001 to 0.01 the normalised network trains",
            "its lowest final accuracy over these scales",
            results.interval(lambda runs: min(small(runs, "batch")), "accuracy"),
            TRAINS,
        ),
        at_most(
            "With initial weights of 0.001 to 0.01 the plain network does not train",
            "its highest final accuracy over these scales",
            results.interval(lambda runs: max(small(runs, "none")), "accuracy"),
            TRAINS,
        ),
        at_least(
            "The normalised network trains at more initial scales than the plain one",
            f"scales reaching {TRAINS:.0%}, normalised minus plain",
            results.interval(lambda runs: spread(runs, "batch") - spread(runs, "none")),
            1.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against the scale of the initial weights."""
    rows = plots.grouped(results, "init", lambda r: r.values["accuracy"])
    chart = plots.curves(
        rows, results.distinct("norm"),
        plots.log_axis("init", "standard deviation of the initial weights", results.distinct("init")),
        "final test accuracy", goal=TRAINS,
    )  # fmt: skip
    return [plots.Chart(
        "initialization", "Final accuracy by initial scale",
        "See the left side: from small weights only the normalised network reaches the dotted line. "
        "Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="initialization",
    question=QUESTIONS["initialization"],
    how="{depth} hidden layers of {width} {activation} units, batches of {batch}, {steps} steps at learning rate "
    "{rate}; initial weights are Gaussian with standard deviations {init}, biases 0. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    own=True,
)
