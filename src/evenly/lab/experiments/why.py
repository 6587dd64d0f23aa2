"""Does it work because inputs stop shifting? (Santurkar et al., 2018)"""

from __future__ import annotations

import copy
from typing import Any

import altair as alt
import torch
from torch import nn
from torch.nn import functional as F

from evenly.lab import plots
from evenly.lab.data import Dataset, Split
from evenly.lab.experiment import Experiment, Result, Results, Values
from evenly.lab.judge import Verdict, at_least
from evenly.lab.networks import Shift
from evenly.lab.questions import QUESTIONS
from evenly.lab.setting import Setting
from evenly.lab.train import ACTIVATION_TYPES, accuracy, moments_of_progress, training

PROBE = 256  # samples of the fixed batch on which shift and smoothness are measured
STRIDE = 0.3  # how far along the gradient smoothness looks, in the units of a learning rate
NAMES = {("none", 0.0): "none", ("batch", 0.0): "batch", ("batch", 0.5): "batch, shifted"}


def settings(full: bool) -> list[Setting]:
    """Plain, normalised, and normalised with a random shift and scale after each norm, new at each step."""
    return [
        Setting(norm=norm, shift=shift, activation="tanh", rate=0.1, steps=1500 if full else 300)
        for norm, shift in NAMES
    ]


def measure(setting: Setting, seed: int, data: Dataset) -> Values:
    """Accuracy, how far the last layer's inputs moved since the step before, and how much the gradient turns."""
    values: Values = {"step": [], "accuracy": [], "moved": [], "turned": []}
    probe = data.train.take(torch.arange(PROBE))
    steps = moments_of_progress(setting.steps, 14, first=5)
    watched = sorted({*steps, *(step - 1 for step in steps)})
    before = None
    for step, network in training(setting, seed, data, watched):
        entering = last_inputs(network, probe)
        if step in steps and before is not None:
            values["step"].append(step)
            values["accuracy"].append(accuracy(network, data.test))
            values["moved"].append(float(((entering.mean(0) - before.mean(0)).abs() / before.std(0)).mean()))
            values["turned"].append(turn(network, probe))
        before = entering
    return values


def last_inputs(network: nn.Module, split: Split) -> torch.Tensor:
    """What enters the last activation in training mode, with the shift of the moment."""
    network = copy.deepcopy(network).train()
    seen: list[torch.Tensor] = []
    last = [m for m in network.modules() if isinstance(m, ACTIVATION_TYPES)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        network(*split.inputs)
    return seen[0]


def turn(network: nn.Module, split: Split) -> float:
    """How much the gradient changes along itself: ``|g(w) - g(w - STRIDE g)| / |g(w)|``, over all weights."""
    network = copy.deepcopy(network).train()
    for module in network.modules():  # the smoothness of the loss, not of the noise
        if isinstance(module, Shift):
            module.size = 0.0
    here = _gradient(network, split)
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), here, strict=True):
            parameter.sub_(gradient, alpha=STRIDE)
    there = _gradient(network, split)
    change = sum(float((a - b).square().sum()) for a, b in zip(here, there, strict=True))
    return float((change / sum(float(a.square().sum()) for a in here)) ** 0.5)


def _gradient(network: nn.Module, split: Split) -> list[torch.Tensor]:
    loss = F.cross_entropy(network(*split.inputs), split.y)
    return list(torch.autograd.grad(loss, list(network.parameters())))


def name_of(result: Result) -> str:
    """What a line of the charts is called."""
    return NAMES[result.setting.norm, result.setting.shift]


def of(runs: Results, name: str, value: str) -> list[float]:
    """A value along the way, of the one run with this name."""
    return [float(v) for v in runs.split(name_of)[name][0].values[value]]


def mean(values: list[float]) -> float:
    """Their average."""
    return sum(values) / len(values)


def judge(results: Results) -> list[Verdict]:
    """If shifting inputs were the point, the shifted network would suffer."""
    return [
        at_least(
            "With the injected shift, the inputs of the last layer move more than in the plain network",
            "movement per step, shifted over plain",
            results.interval(lambda r: mean(of(r, "batch, shifted", "moved")) / mean(of(r, "none", "moved")), "×"),
            1.0,
        ),
        at_least(
            "Nevertheless the shifted network trains at least as fast as the plain one",
            "accuracy averaged over the run's snapshots, shifted minus plain",
            results.interval(
                lambda r: mean(of(r, "batch, shifted", "accuracy")) - mean(of(r, "none", "accuracy")), "points"
            ),
            0.0,
        ),
        at_least(
            "The gradient turns less along its own direction with batch normalization: the loss is smoother",
            f"change of the gradient over a step of {STRIDE:g}, plain over normalised, averaged over the snapshots",
            results.interval(lambda r: mean(of(r, "none", "turned")) / mean(of(r, "batch", "turned")), "×"),
            1.0,
        ),
    ]


def charts(results: Results) -> list[plots.Chart]:
    """Accuracy, movement and smoothness along the way."""
    lines = results.split(name_of)

    def chart(value: str, title: str, *, share: bool = False) -> alt.LayerChart:
        rows = [row for name, runs in lines.items() for row in plots.along(runs, name, value, top=1 if share else None)]
        look: dict[str, Any] = {} if share else {"domain": None, "form": "~g"}
        return plots.curves(
            rows,
            list(lines),
            plots.log_axis("step", "training step", results[0].values["step"]),
            title,
            points=False,
            **look,
        )

    caption = (
        "See that the shifted network, whose inputs move most, still learns sooner than the plain one. "
        "Means over seeds with 95 % intervals."
    )
    return [
        plots.Chart("why_accuracy", "Test accuracy", caption, chart("accuracy", "test accuracy", share=True)),
        plots.Chart(
            "why_moved", "Movement of the last layer's inputs",
            "See the order of the lines: the injected shift moves the inputs far more than training does. "
            "Change of each unit's mean from one step to the next, in standard deviations, on a fixed batch.",
            chart("moved", "movement per step"), half=True,
        ),
        plots.Chart(
            "why_turned", "Change of the gradient along itself",
            "See where the lines cross: the plain network is the smoother one at first only. "
            f"Relative change of the gradient a step of {STRIDE:g} along itself; lower is smoother.",
            chart("turned", "relative change"), half=True,
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    name="why",
    question=QUESTIONS["why"],
    how="After Santurkar et al. (2018): each step multiplies what leaves a norm by a random 1 ± 0.5 per unit and "
    "adds as much. Three hidden layers of {width} {activation} units, batches of {batch}, {steps} steps at learning "
    "rate {rate}. {seeds} seeds.",
    settings=settings,
    measure=measure,
    judge=judge,
    charts=charts,
)
