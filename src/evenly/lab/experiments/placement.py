"""Before or after the activation?"""

from __future__ import annotations

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, moments_of_progress, training

PLACES = ("before", "after")


def settings(full: bool) -> list[Setting]:
    """Both places for three activations, and none for comparison."""
    return [
        Setting(norm=norm, place=place, activation=activation, steps=1000 if full else 250)
        for activation in ("sigmoid", "tanh", "relu")
        for norm, place in (("none", "before"), ("batch", "before"), ("batch", "after"))
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Test accuracy along the way."""
    values: Values = {"step": [], "accuracy": []}
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 16, first=5)):
        values["step"].append(step)
        values["accuracy"].append(accuracy(network, data.test))
    return values


def final(runs: Results, place: str) -> float:
    """The accuracy at the end, with the norm at ``place``."""
    (run,) = runs.where(norm="batch", place=place)
    return float(run.values["accuracy"][-1])


def judge(results: Results) -> list[Verdict]:
    """The paper puts it before; is that at least as good?"""
    return [
        at_least(
            f"Before the activation is at least as good as after it, to one point ({activation})",
            "final accuracy, before minus after",
            results.where(activation=activation).interval(
                lambda runs: final(runs, "before") - final(runs, "after"), "points"
            ),
            -0.01,
        )
        for activation in results.distinct("activation")
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Accuracy against steps for both places."""
    made = []
    names = {("none", "before"): "none", ("batch", "before"): "before", ("batch", "after"): "after"}
    for activation in results.distinct("activation"):
        rows = [
            row
            for (norm, place), name in names.items()
            for row in plots.along(results.where(activation=activation, norm=norm, place=place), name)
        ]
        chart = plots.curves(
            rows, list(names.values()), plots.log_axis("step", "training step", results[0].values["step"]),
            points=False, domain=plots.from_floor([row for row in rows if row["norm"] != plots.label("none")]),
        )  # fmt: skip
        made.append(plots.Chart(
            f"placement_{activation}", f"Before or after {activation}",
            "See the right end: both places end close together. The axis begins ten points below. "
            "Means over seeds with 95 % intervals.", chart, half=True,
        ))  # fmt: skip
    return made


EXPERIMENT = Experiment(
    name="placement",
    question=QUESTIONS["placement"],
    how="Three hidden layers of {width} units ({activation}), torch's default weights, batches of {batch}, {steps} "
    "steps at learning rate {rate}, batch norm before or after each activation. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(8, 10),
)
