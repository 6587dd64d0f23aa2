"""Does it bear larger learning rates?"""

from __future__ import annotations

import math

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, at_most
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

TRAINS = 0.9  # a rate "trains" if the final test accuracy is at least this
LARGE = 1.0  # from this rate on the plain network is not expected to train
ACTIVATIONS = ("sigmoid", "relu")


def settings(full: bool) -> list[Setting]:
    """Rates from 0.001 to 100, two to a decade (four in the full form)."""
    per_decade = 4 if full else 2
    rates = [float(f"{10 ** (i / per_decade - 3):.3g}") for i in range(5 * per_decade + 1)]
    return [
        Setting(norm=norm, activation=activation, rate=rate, steps=1000 if full else 300)
        for activation in ACTIVATIONS
        for norm in ("none", "batch")
        for rate in rates
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The final test accuracy."""
    return {"accuracy": accuracy(trained(setting, seed, data), data.test)}


def trained_rates(runs: Results, norm: str) -> int:
    """At how many of the rates a network trains."""
    return sum(a >= TRAINS for a in runs.where(norm=norm).of("accuracy"))


def counted(results: Results, norm: str) -> str:
    """``0`` or ``7 to 8`` of the rates, over the seeds."""
    counts = sorted({trained_rates(runs, norm) for runs in results.by_seed()})
    return f"{counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")


def judge(results: Results) -> list[Verdict]:
    """How many rates train, and what large ones do to the plain network, for each activation."""
    return [v for activation in results.distinct("activation") for v in _judge(results, activation)]


def _judge(results: Results, activation: str) -> list[Verdict]:
    runs = results.where(activation=activation)
    large = runs.where(lambda r: r.setting.rate >= LARGE, norm="none")
    rates = len(runs.distinct("rate"))
    per_decade = (rates - 1) / math.log10(max(runs.distinct("rate")) / min(runs.distinct("rate")))
    told = f"plain {counted(runs, 'none')} of {rates}, normalised {counted(runs, 'batch')} of {rates}"
    return [
        at_most(
            f"A plain {activation} network does not train at rates of {LARGE:g} and more",
            "its highest final accuracy over these rates",
            large.interval(lambda found: max(found.of("accuracy")), "accuracy"),
            TRAINS,
        ),
        at_least(
            f"With batch normalization the {activation} network trains over a decade more of rates, or further",
            f"decades of rates reaching {TRAINS:.0%}, normalised minus plain ({told} rates)",
            runs.interval(lambda found: (trained_rates(found, "batch") - trained_rates(found, "none")) / per_decade),
            1.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against the learning rate."""
    made = []
    for activation in results.distinct("activation"):
        runs = results.where(activation=activation)
        rows = plots.grouped(runs, "rate", lambda r: r.values["accuracy"])
        chart = plots.curves(
            rows, runs.distinct("norm"), plots.log_axis("rate", "learning rate", runs.distinct("rate")),
            "final test accuracy", goal=TRAINS,
        )  # fmt: skip
        made.append(plots.Chart(
            f"learning_rate_{activation}", f"Final accuracy by learning rate, {activation}",
            "See how far each line stays above the dotted one: at so many rates the network trains. "
            "Means over seeds with 95 % intervals.", chart,
        ))  # fmt: skip
    return made


EXPERIMENT = Experiment(
    name="learning_rate",
    question=QUESTIONS["learning_rate"],
    how="Three hidden layers of {width} units ({activation}), torch's default weights, batches of {batch}, {steps} "
    "steps at each of the rates {rate}. A rate trains if the final test accuracy is at least 90 %; rates are "
    "counted, since a network that trains at none has no width to divide by. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(8, 10),
    own=True,
)
