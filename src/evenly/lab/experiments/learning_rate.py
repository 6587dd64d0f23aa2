"""Does it bear larger learning rates?"""

from __future__ import annotations

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

TRAINS = 0.9  # a rate "trains" if the final test accuracy is at least this
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


def band(runs: Results) -> float:
    """The width of the longest unbroken run of rates that train, as a factor; each rate stands for one grid step.

    1 where no rate trains.
    """
    rates = sorted(runs.distinct("rate"))
    step = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
    longest = current = 0
    for rate in rates:
        (run,) = runs.where(rate=rate)
        current = current + 1 if run.values["accuracy"] >= TRAINS else 0
        longest = max(longest, current)
    return float(step**longest)


def judge(results: Results) -> list[Verdict]:
    """The ratio of the two bands, for each activation."""
    return [
        at_least(
            f"The band of learning rates that train is ten times wider or more with batch normalization ({activation})",
            f"width of the band reaching {TRAINS:.0%}, normalised over plain",
            results.where(activation=activation).interval(
                lambda runs: band(runs.where(norm="batch")) / band(runs.where(norm="none")), "×"
            ),
            10.0,
        )
        for activation in results.distinct("activation")
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy against the learning rate."""
    made = []
    for activation in results.distinct("activation"):
        runs = results.where(activation=activation)
        rows = plots.grouped(runs, "rate", lambda r: r.values["accuracy"])
        chart = plots.curves(
            rows, runs.distinct("norm"), plots.log_axis("rate", "learning rate", runs.distinct("rate")),
            "final test accuracy",
        )  # fmt: skip
        made.append(plots.Chart(
            f"learning_rate_{activation}", f"Final accuracy by learning rate, {activation}",
            f"Means over seeds with 95 % intervals; a rate counts as trained from {TRAINS:.0%}.", chart,
        ))  # fmt: skip
    return made


EXPERIMENT = Experiment(
    name="learning_rate",
    question="Does it bear larger learning rates?",
    how="Three hidden layers of {width} units ({activation}), torch's default weights, batches of {batch}, {steps} "
    "steps at each of the rates {rate}. A rate trains if the final test accuracy is at least 90 %; the band is the "
    "longest unbroken run of such rates. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    own=True,
)
