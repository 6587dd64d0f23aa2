"""Does it converge sooner?"""

from __future__ import annotations

from typing import Any

import altair as alt

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, moments_of_progress, training

GOALS = (0.8, 0.9, 0.95)
GOAL = 0.9
RATES = (0.03, 0.1, 0.3, 1.0)


def settings(full: bool) -> list[Setting]:
    """Each network at four rates, so that each is judged at its own best."""
    return [
        Setting(norm=norm, activation=activation, rate=rate, steps=4000 if full else 1000)
        for activation in ("relu", "sigmoid")
        for norm in ("none", "batch")
        for rate in RATES
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The step at which each goal is first reached; the run ends with the last goal."""
    reached: dict[float, int] = {}
    for step, network in training(setting, seed, data, moments_of_progress(setting.steps, 60, first=3)):
        found = accuracy(network, data.test)
        reached |= {goal: step for goal in GOALS if found >= goal and goal not in reached}
        if len(reached) == len(GOALS):
            break
    return {"reached": [reached.get(goal) for goal in GOALS]}


def steps_to(runs: Results, goal: float = GOAL) -> float:
    """The fewest steps to the goal over the rates; the whole budget where it is not reached at any."""
    reached = [r.values["reached"][GOALS.index(goal)] for r in runs]
    return float(min((step for step in reached if step is not None), default=runs[0].setting.steps))


def censored(results: Results) -> str:
    """What the ratio rests on where the plain network did not get there: a lower bound, and it is said."""
    index = GOALS.index(GOAL)
    plain = [runs.where(norm="none") for runs in results.by_seed()]
    short = sum(all(r.values["reached"][index] is None for r in runs) for runs in plain)
    if not short:
        return ""
    return f" (a lower bound: in {short} of {len(plain)} seeds the plain network did not get there, at any rate)"


def judge(results: Results) -> list[Verdict]:
    """The ratio of steps, seed by seed, each network at its best rate."""
    return [
        at_least(
            f"A {activation} network reaches {GOAL:.0%} in at most half the steps with batch normalization",
            "steps at the best rate, plain over normalised" + censored(results.where(activation=activation)),
            results.where(activation=activation).interval(
                lambda runs: steps_to(runs.where(norm="none")) / steps_to(runs.where(norm="batch")), "×"
            ),
            2.0,
        )
        for activation in results.distinct("activation")
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Steps to each goal."""
    made = []
    for activation in results.distinct("activation"):
        rows: list[dict[str, Any]] = [
            {"norm": plots.label(norm), "goal": goal, "steps": steps_to(runs.where(norm=norm), goal)}
            for runs in results.where(activation=activation).by_seed()
            for norm in results.distinct("norm")
            for goal in GOALS
        ]
        look = plots.series(results.distinct("norm"))
        base = alt.Chart(alt.InlineData(values=rows)).encode(
            x=plots.log_axis("steps", "training steps", [row["steps"] for row in rows]),
            y=alt.Y(
                "goal:O",
                title="test accuracy reached",
                sort="descending",
                axis=alt.Axis(format=".0%", labelOverlap=False, grid=True),
            ),
            yOffset=alt.YOffset("norm:N"),
            color=look["color"],
        )
        chart = base.mark_point(size=45, opacity=0.6) + base.mark_point(filled=True, size=110, shape="diamond").encode(
            x=alt.X("mean(steps):Q", title="training steps")
        )
        made.append(plots.Chart(
            f"convergence_{activation}", f"Steps to a given accuracy, {activation}",
            "See how far apart the two rows of each accuracy lie on the logarithmic axis. "
            "Rings are seeds, diamonds their means; each network at the rate that brings it there first. "
            "A goal that was not reached stands at the end of the budget.",
            plots.sized(chart, 220), half=True,
        ))  # fmt: skip
    return made


EXPERIMENT = Experiment(
    name="convergence",
    question=QUESTIONS["convergence"],
    how="Three hidden layers of {width} units ({activation}), batches of {batch}, at most {steps} steps, at each "
    "of the learning rates {rate}; of each network the rate that reaches the goal first counts. A goal not reached "
    "counts as the whole budget, so ratios then are lower bounds. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    own=True,
)
