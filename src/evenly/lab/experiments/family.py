"""Which norm when?"""

from __future__ import annotations

from functools import partial

import altair as alt

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Result, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, trained

EVERYWHERE = ("batch", "layer")  # the norms that run in every task


def settings(full: bool) -> list[Setting]:
    """Pictures in large and small batches, a table of raw features, sequences; every norm where it applies."""
    k = 4 if full else 1
    pictures = Setting(data="digits", network="convolutional", depth=2, width=16, rate=0.1, batch=64, steps=200 * k)
    tasks = {
        pictures: ("none", "batch", "layer", "group", "instance"),
        Setting(data="digits", network="convolutional", depth=2, width=16, rate=0.02, batch=2, steps=800 * k): (
            "none", "batch", "layer", "group", "instance",
        ),
        Setting(data="breast_cancer", depth=2, width=32, rate=0.1, batch=32, steps=150 * k): (
            "none", "batch", "layer", "group",
        ),
        Setting(data="vowels", network="recurrent", activation="tanh", depth=1, width=48, rate=0.3, batch=30,
                steps=200 * k): ("none", "batch", "layer"),
    }  # fmt: skip
    return [Setting(**{**task.as_dict(), "norm": norm}) for task, norms in tasks.items() for norm in norms]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """The final test accuracy."""
    return {"accuracy": accuracy(trained(setting, seed, data), data.test)}


def task(result: Result) -> str:
    """What a setting is called."""
    kind = {"digits": "pictures", "breast_cancer": "raw table", "vowels": "sequences"}[result.setting.data]
    return f"{kind}, batch {result.setting.batch}"


def behind(runs: Results, norm: str) -> float:
    """How far a norm is behind the best of each task, where it is furthest behind."""
    gaps = []
    for here in runs.split(task).values():
        gaps.append(max(here.of("accuracy")) - here.where(norm=norm)[0].values["accuracy"])
    return float(max(gaps))


def judge(results: Results) -> list[Verdict]:
    """No norm for everything."""
    return [
        at_least(
            f"{plots.label(norm).capitalize()} is two points or more behind the best in some task",
            "accuracy behind the best norm, in the task where it is furthest behind",
            results.interval(partial(behind, norm=norm), "points"),
            0.02,
        )
        for norm in EVERYWHERE
    ]  # fmt: skip


def charts(results: Results) -> list[plots.Chart]:
    """Final accuracy of each norm in each task."""
    rows = plots.bands([
        ({"norm": plots.label(norm), "task": name}, runs.of("accuracy"))
        for name, here in results.split(task).items()
        for norm in here.distinct("norm")
        for runs in [here.where(norm=norm)]
    ])  # fmt: skip
    look = plots.series(results.distinct("norm"))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("task:N", title=None, sort=None),
        yOffset=alt.YOffset("norm:N", sort=[plots.label(n) for n in results.distinct("norm")]),
        color=look["color"],
        tooltip=["task:N", "norm:N", alt.Tooltip("value:Q", format=".1%")],
    )
    x = alt.X("value:Q", title="final test accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    chart = base.mark_rule(strokeWidth=2).encode(x=x.copy(), x2="high:Q").transform_calculate(value="datum.low")
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=x)
    return [plots.Chart(
        "family", "Final accuracy by task",
        "See that no colour leads in all four rows. Dots are means over seeds, lines 95 % intervals.",
        plots.sized(chart + dots, 340),
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="family",
    question=QUESTIONS["family"],
    how="Four tasks: the digits with a convolutional network in batches of 64 and of 2, the breast cancer features on "
    "their raw scales of 0.001 to 1000 with a dense network, and the vowels with a recurrent one; every norm where it "
    "applies. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    seeds=(4, 8),
)
