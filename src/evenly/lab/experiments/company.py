"""Which norms need a batch?"""

from __future__ import annotations

import torch
from torch import nn

from evenly.lab import plots
from evenly.lab.data import Dataset
from evenly.lab.experiment import Experiment, Results, Values
from evenly.lab.judge import Verdict, at_least, exactly
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import trained

ALONE = ("layer", "instance", "group")
SIZES = (2, 4, 8, 16, 32, 64)
TIMES = 16  # companies that a sample is put into
ROUNDING = 1e-4  # of float32 scores of order 10, summed in another order


def settings(full: bool) -> list[Setting]:
    """One network for each norm, briefly trained."""
    return [
        Setting(network="convolutional", norm=norm, depth=2, width=16, rate=0.1, batch=32, steps=300 if full else 60)
        for norm in ("batch", *ALONE)
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """How far a sample's scores, in training mode, depend on who else is in the batch."""
    network = trained(setting, seed, data).train()
    return {"size": list(SIZES), "moved": [moved(network, seed, data, size) for size in SIZES]}


@torch.no_grad()
def moved(network: nn.Module, seed: int, data: Dataset, size: int) -> float:
    """The largest difference of a score of the first test sample in batches of ``size`` with changing company."""
    generator = torch.Generator().manual_seed(seed)
    others = [torch.randperm(len(data.train), generator=generator)[: size - 1] for _ in range(TIMES)]
    scores = torch.stack([network(torch.cat([data.test.x[:1], data.train.x[index]]))[0] for index in others])
    return float((scores.amax(0) - scores.amin(0)).max())


def judge(results: Results) -> list[Verdict]:
    """Batch norm depends on the company, the others do not."""
    dependent = at_least(
        f"In a batch of {SIZES[1]} batch norm's answer for a sample in training depends on the company",
        f"largest difference of a score over {TIMES} companies",
        results.where(norm="batch").interval(lambda runs: runs[0].values["moved"][1]),
        0.1,
    )
    independent = [
        exactly(
            f"{plots.label(norm).capitalize()}'s answer for a sample does not depend on the company",
            f"largest difference of a score over {TIMES} companies, batches of {SIZES[0]} to {SIZES[-1]} and all seeds",
            [value for run in results.where(norm=norm) for value in run.values["moved"]],
            ROUNDING,
        )
        for norm in ALONE
    ]
    return [dependent, *independent]


def charts(results: Results) -> list[plots.Chart]:
    """How far the scores move, by the size of the batch."""
    rows = [
        row
        for norm in results.distinct("norm")
        for row in plots.bands([
            ({"norm": plots.label(norm), "size": size}, [r.values["moved"][i] for r in results.where(norm=norm)])
            for i, size in enumerate(SIZES)
        ], top=None)
    ]  # fmt: skip
    axis = plots.log_axis("size", "samples in the batch", SIZES)
    chart = plots.curves(rows, results.distinct("norm"), axis, "change of a score", domain=None, form="~g")
    return [plots.Chart(
        "company", "How far a sample's scores depend on its company",
        "See three lines on the floor: layer, instance and group norm look at one sample at a time. Batch norm's line "
        "comes down to them only as batches grow. Means over seeds with 95 % intervals.", chart,
    )]  # fmt: skip


EXPERIMENT = Experiment(
    name="company",
    question=QUESTIONS["company"],
    how="A convolutional network of {depth} layers with {width} channels for each norm, {steps} steps. Then, in "
    "training mode, one test sample is sent through in batches of several sizes with sixteen different companies "
    "each, and the largest difference of a score is kept. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
    pictures=True,
)
