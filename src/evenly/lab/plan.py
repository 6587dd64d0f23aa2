"""From what the user asked for to the cells to run: checked, counted, and their time estimated."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from evenly.lab import sources
from evenly.lab.cells import Store
from evenly.lab.data import Dataset, load
from evenly.lab.experiment import Cell, Experiment
from evenly.lab.experiments import DEFAULT, EXPERIMENTS
from evenly.lab.networks import build
from evenly.lab.setting import Setting
from evenly.lab.train import training
from evenly.tools import files

ENGINES = ("local", "ray", "dask")


@dataclass(frozen=True)
class Plan:
    """A run of the lab, checked.

    Args:
        experiments: in the order of the report.
        cells: all of them, finished or not.
        store: where finished cells are.
        out: the folder of the report.
        jobs: processes at a time.
        engine: ``"local"``, ``"ray"`` or ``"dask"``.
        command: what to type to get the same run again.
        skipped: experiments that do not apply to the data or network, each with the reason.
    """

    experiments: tuple[Experiment, ...]
    cells: tuple[Cell, ...]
    store: Store
    out: Path
    jobs: int
    engine: str
    command: str
    skipped: tuple[str, ...] = ()

    def unfinished(self) -> list[Cell]:
        """The cells that no earlier run has finished."""
        return [cell for cell in self.cells if self.store.read(cell) is None]


def plan(
    names: Sequence[str] = (),
    *,
    everything: bool = False,
    full: bool = False,
    data: str = "digits",
    model: str | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    engine: str = "local",
    out: str | Path = "lab-out",
) -> Plan:
    """Check what was asked for and list its cells.

    Args:
        names: of experiments; none: the default four (with ``everything`` all).
        everything: all experiments.
        full: more seeds, finer grids, longer training.
        data: a name or npz file that `evenly.lab.data.load` knows.
        model: the user's network, ``MODULE:FACTORY``.
        seeds: how many, in place of each experiment's own number.
        jobs: processes at a time; None: one per core.
        engine: what runs them.
        out: the folder for cells and report.

    Raises:
        ValueError: an experiment, data, network, number or folder cannot be used.
    """
    _check_number("--seeds", seeds)
    _check_number("--jobs", jobs)
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known are {', '.join(ENGINES)}")
    dataset = load(data)
    if model is not None:
        _check_model(model, data, dataset)
    asked = names or (EXPERIMENTS if everything else DEFAULT)
    chosen, skipped = [], []
    for name in dict.fromkeys(asked):
        experiment = _known(name)
        reason = _does_not_apply(experiment, data, dataset, model)
        if reason and names:
            raise ValueError(reason)
        if reason:
            skipped.append(reason)
        else:
            chosen.append(experiment)
    cells = [cell for experiment in chosen for cell in _cells(experiment, full, data, model, seeds)]
    command = _command(names, everything, full, data, model, seeds)
    store = Store.create(Path(out) / "cells")
    pages = {f"--out {out}, in it": Path(out) / "report.html", "claims": Path(out) / "claims.json"}
    files.check_outputs({**pages, "settings": Path(out) / "lab.json"}, [data] * data.endswith(".npz"))
    return Plan(
        tuple(chosen), tuple(cells), store, Path(out), jobs or _cores(), engine, command, tuple(skipped)
    )  # fmt: skip


def _check_number(option: str, number: int | None) -> None:
    if number is not None and number < 1:
        raise ValueError(f"{option} must be at least 1, got {number}")


def _known(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _does_not_apply(experiment: Experiment, data: str, dataset: Dataset, model: str | None) -> str | None:
    if model is not None and not experiment.own:
        able = ", ".join(e.name for e in EXPERIMENTS.values() if e.own)
        return f"{experiment.name} builds its own networks and does not take --model; these do: {able}"
    if experiment.pictures and dataset.train.x.ndim not in (3, 4):
        shape = tuple(dataset.train.x.shape[1:])
        return (
            f"{experiment.name} needs pictures of shape (N, H, W) or (N, C, H, W), and {data} holds samples of {shape}"
        )
    return None


def _check_model(model: str, data: str, dataset: Dataset) -> None:
    try:
        network = build(Setting(network=model, data=data, norm="batch"), dataset, seed=0)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:  # of the user's factory
        raise ValueError(f"--model {model} cannot be built: {type(error).__name__}: {error}") from None
    some = dataset.train.take(torch.arange(min(4, len(dataset.train))))
    try:
        scores = network(*some.inputs)
    except Exception as error:
        raise ValueError(
            f"--model {model} does not take {data}'s samples of shape {tuple(some.x.shape)}: {error}"
        ) from None
    wanted = (len(some), dataset.classes)
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != wanted:
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"--model {model} must answer {data} with scores of shape {wanted}, got {got}")
    sources.users(model)  # from here on, a file of this code that changes is noticed


def _cells(experiment: Experiment, full: bool, data: str, model: str | None, seeds: int | None) -> list[Cell]:
    settings = experiment.settings(full)
    settings = [replace(s, data=data) if s.data == "chosen" else s for s in settings]
    if model is not None:  # what a factory builds has its own depth, width and activation
        settings = [replace(s, network=model, activation=model, depth=0, width=0) for s in settings]
    count = seeds or experiment.seeds[full]
    return [Cell(experiment.name, setting, seed) for setting in dict.fromkeys(settings) for seed in range(count)]


def _command(
    names: Sequence[str], everything: bool, full: bool, data: str, model: str | None, seeds: int | None
) -> str:
    parts = ["evenly lab", *names]
    parts += ["--all"] * (everything and not names) + ["--full"] * full
    parts += [f"--data {data}"] * (data != "digits") + [f"--model {model}"] * (model is not None)
    parts += [f"--seeds {seeds}"] * (seeds is not None)
    return " ".join(parts)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PROBE_STEPS = 6


def estimate(cells: Sequence[Cell]) -> dict[Cell, float]:
    """Seconds that each cell will take on one core, from a few timed steps of each kind of network."""
    pace: dict[Setting, float] = {}
    costs = {}
    for cell in cells:
        kind = replace(cell.setting, rate=0.01, init=None, steps=PROBE_STEPS, momentum=0.1, average="ema", shift=0.0)
        if kind not in pace:
            pace[kind] = _seconds_per_step(kind)
        costs[cell] = pace[kind] * cell.setting.steps
    return costs


def _seconds_per_step(kind: Setting) -> float:
    times = []
    for _ in training(kind, 0, load(kind.data), range(PROBE_STEPS + 1)):
        times.append(time.perf_counter())
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 2]
