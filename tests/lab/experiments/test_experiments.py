"""Every experiment, run very short: it measures, judges, draws and says how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evenly.lab.data import load
from evenly.lab.experiment import Result, Results
from evenly.lab.experiments import DEFAULT, EXPERIMENTS, NAMES
from evenly.lab.networks import build
from evenly.lab.plan import plan
from evenly.lab.plots import log_ticks
from evenly.lab.report import Section, _finite
from evenly.lab.setting import Setting

SHORT = 20  # steps


def shortened(name: str) -> Results:
    """Two seeds of each setting, at most twenty steps, small batches' long runs included."""
    experiment = EXPERIMENTS[name]
    found = []
    for setting in experiment.settings(False):
        setting = replace(setting, data="digits" if setting.data == "chosen" else setting.data)
        setting = replace(setting, steps=min(setting.steps, SHORT), width=min(setting.width, 8))
        for seed in (0, 1):
            values = experiment.measure(setting, seed, load(setting.data))
            found.append(Result(setting, seed, values))
    return Results(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_goes_all_the_way(name: str) -> None:
    """From settings to verdicts and charts that Vega-Lite's schema accepts, and a text without a gap."""
    section = Section.of(EXPERIMENTS[name], shortened(name), rerun="evenly lab")

    assert section.verdicts
    assert section.charts
    assert "{" not in section.how
    assert len(section.seen()) == len(section.verdicts)
    for chart in section.charts:
        specification = _finite(chart.chart.to_dict())
        assert specification["width"] == "container"
        if chart.slider:
            assert chart.slider.parameter in str(specification["params"])


@pytest.mark.parametrize("name", NAMES)
def test_quick_and_full_forms(name: str) -> None:
    """No setting occurs twice, the full form has at least as many, and as many seeds."""
    experiment = EXPERIMENTS[name]
    quick, full = experiment.settings(False), experiment.settings(True)

    assert len(set(quick)) == len(quick) <= len(full) == len(set(full))
    assert experiment.seeds[0] <= experiment.seeds[1]
    assert experiment.name == name
    assert experiment.question.endswith("?")


def own_network() -> nn.Module:
    """A network as a user might bring it, for samples of 5 numbers and 3 classes."""
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", [name for name in NAMES if EXPERIMENTS[name].own])
def test_own_network_on_own_data(name: str, tmp_path: Path) -> None:
    """What applies to the user's network runs on the user's file, and the text names the network, not ours."""
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=generator.normal(size=(80, 5)), y=np.arange(80) % 3)
    mine, model = str(tmp_path / "mine.npz"), f"{__name__}:own_network"
    cells = plan([name], data=mine, model=model, seeds=2, out=tmp_path).cells
    assert len(set(cells)) == len(cells)
    found = [
        Result(setting, cell.seed, EXPERIMENTS[name].measure(setting, cell.seed, load(mine)))
        for cell in cells
        for setting in [replace(cell.setting, steps=SHORT)]
    ]
    section = Section.of(EXPERIMENTS[name], Results(found), rerun="evenly lab")

    assert model in section.how
    assert section.verdicts


def test_the_default_is_known() -> None:
    """The default run names experiments that exist."""
    assert set(DEFAULT) <= set(NAMES)


def runs(field: str, values: dict[tuple[str, float], object], key: str = "accuracy") -> Results:
    """Made-up results of one seed: value by norm and field."""
    return Results([Result(Setting(norm=norm, **{field: x}), 0, {key: v}) for (norm, x), v in values.items()])


def test_learning_rates_are_counted() -> None:
    """Rates that train are counted, not divided by: a network that trains at none gives 0 and an honest difference."""
    from evenly.lab.experiments.learning_rate import judge, trained_rates

    found = []
    for seed in (0, 1):
        for norm, accuracies in (("none", [0.1, 0.1, 0.1, 0.1]), ("batch", [0.2, 0.95, 0.9, 0.93 - seed / 10])):
            for i, accuracy in enumerate(accuracies):
                setting = Setting(norm=norm, activation="sigmoid", rate=10.0 ** (i - 2))
                found.append(Result(setting, seed, {"accuracy": accuracy}))
    results = Results(found)
    plain, wider = judge(results)

    assert [trained_rates(runs, "none") for runs in results.by_seed()] == [0, 0]
    assert [trained_rates(runs, "batch") for runs in results.by_seed()] == [3, 2]
    assert plain.interval.value == pytest.approx(0.1)
    assert wider.interval.value == pytest.approx(2.5)  # decades: the rates lie one apart
    assert "plain 0 of 4, normalised 2 to 3 of 4 rates" in wider.about


def test_paper_share_of_steps() -> None:
    """The first step above the plain network's last accuracy, over its steps; twice all of them where there is none."""
    from evenly.lab.experiments.paper import share_of_steps

    def made(normed: list[float]) -> Results:
        steps = [10, 20, 200]
        return Results([
            Result(Setting(norm=norm, steps=200), 0, {"step": steps, "accuracy": accuracy})
            for norm, accuracy in (("none", [0.1, 0.2, 0.9]), ("batch", normed))
        ])  # fmt: skip

    assert share_of_steps(made([0.5, 0.91, 0.95])) == 0.1
    assert share_of_steps(made([0.5, 0.9, 0.9])) == 2


def test_depth_counts_from_the_shallow_end() -> None:
    """A deep network that happens to train does not count where a shallower one did not."""
    from evenly.lab.experiments.depth import deepest

    assert deepest(runs("depth", {("none", 3): 0.95, ("none", 6): 0.5, ("none", 12): 0.95})) == 3
    assert deepest(runs("depth", {("none", 3): 0.5})) == 0


def test_convergence_takes_the_best_rate() -> None:
    """The fewest steps over the rates; all of them where the goal is never reached."""
    from evenly.lab.experiments.convergence import GOALS, steps_to

    reached = {("none", 0.1): [None] * len(GOALS), ("none", 1.0): [5, 40, None]}
    made = runs("rate", dict(reached), key="reached")

    assert steps_to(made, 0.9) == 40
    assert steps_to(made, 0.95) == Setting().steps


def test_family_gap_is_the_worst_task() -> None:
    """A norm's figure is how far it is behind the best in the task where it does worst."""
    from evenly.lab.experiments.family import behind

    table = {("digits", "batch"): 0.9, ("digits", "layer"): 0.8, ("vowels", "batch"): 0.3, ("vowels", "layer"): 0.7}
    made = Results([Result(Setting(data=d, norm=n), 0, {"accuracy": a}) for (d, n), a in table.items()])

    assert behind(made, "batch") == pytest.approx(0.4)
    assert behind(made, "layer") == pytest.approx(0.1)


def test_sequence_ways_are_told_apart() -> None:
    """Every setting has a name of its own, and the verdicts take the accuracies of the right ones."""
    from evenly.lab.experiments import sequence

    final = {"none": 0.5, "layer": 0.9, "batch": 0.4, "batch, no masks": 0.7}
    final |= {"batch, 4 or more": 0.8, "batch, on inputs": 0.95}
    found = [
        Result(setting, seed, {"step": [1], "accuracy": [final[name]], "by batch": final[name] / 2})
        for name, setting in zip(sequence.WAYS, sequence.settings(False), strict=True)
        for seed in (0, 1)
    ]
    verdicts = sequence.judge(Results(found))

    assert list(Results(found).split(sequence.name_of)) == list(final)
    assert [v.interval.value for v in verdicts] == pytest.approx([0.5, -0.3, -0.15, 0.4, 0.05])


def test_few_sequences_left_use_the_running_statistics() -> None:
    """Where fewer are left than asked for, a step's own statistics are neither used nor kept."""
    data = load("vowels")
    some = data.train.take(data.train.lengths.argsort()[-3:])
    running = {}
    for fewest in (1, 4):
        setting = Setting(network="recurrent", norm="batch", data="vowels", depth=1, width=5, fewest=fewest)
        network = build(setting, data, seed=0).train()
        network(*some.inputs).sum().backward()
        running[fewest] = network.norm.num_batches_tracked.item()

    assert running == {1: int(some.lengths.max()), 4: 0}


def test_a_norm_on_the_inputs_sees_all_steps_at_once() -> None:
    """One mean per unit over all steps within the lengths, whatever stands beyond them."""
    data = load("vowels")
    some = data.train.take(data.train.lengths.argsort()[:4])
    setting = Setting(network="recurrent", norm="batch", data="vowels", depth=1, width=5, place="inputs")
    x, lengths = some.inputs
    beyond = x.clone()
    beyond[torch.arange(x.shape[1])[None] >= lengths[:, None]] = 100.0
    means = []
    for inputs in (x, beyond):
        network = build(setting, data, seed=0).train()
        network(inputs, lengths)
        means.append(network.norm.running_mean / network.norm.momentum)
    within = torch.cat([network.input(x[i, :n]) for i, n in enumerate(lengths)])

    torch.testing.assert_close(means[0], within.mean(0))
    torch.testing.assert_close(means[1], means[0])


def test_a_straight_line_has_no_curvature() -> None:
    """Small inputs use a sigmoid's straight part, large ones its bends: the unexplained share grows from 0."""
    from evenly.lab.experiments.affine import curved

    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]

    assert curved(0.01 * x) < 1e-9
    assert curved(x) < 0.01 < curved(4 * x) < curved(20 * x)


def test_only_batch_norm_depends_on_company() -> None:
    """In training mode another company changes batch norm's scores, and group norm's not at all."""
    from evenly.lab.experiments.company import moved

    data = load("digits")
    setting = Setting(network="convolutional", depth=1, width=8, batch=8)
    found = {
        norm: moved(build(replace(setting, norm=norm), data, 0).train(), 0, data, 4) for norm in ("batch", "group")
    }

    assert found["batch"] > 1e-3
    assert found["group"] < 1e-6


def test_a_lower_bound_is_called_one() -> None:
    """Where the plain network never reached the goal, the ratio's name says so and in how many seeds."""
    from evenly.lab.experiments.convergence import GOALS, judge

    def made(plain: list[int | None]) -> Results:
        return Results([
            Result(Setting(norm=norm, activation="relu", rate=0.1, steps=1000), seed, {"reached": [step] * len(GOALS)})
            for seed, end in enumerate(plain)
            for norm, step in (("none", end), ("batch", 10))
        ])  # fmt: skip

    assert "a lower bound: in 1 of 2 seeds" in judge(made([None, 500]))[0].about
    assert "lower bound" not in judge(made([400, 500]))[0].about


def test_line_names_do_not_overlap() -> None:
    """Names of lines that end together are moved apart and keep their order; a lone name stays at its line."""
    from evenly.lab.plots import HEIGHT, ends

    rows = [
        {"norm": n, "step": s, "value": v}
        for n, v in zip("abcd", (0.5, 0.97, 0.971, 0.972), strict=True)
        for s in (1, 9)
    ]
    placed = {row["norm"]: row["place"] for row in ends(rows, "step")}

    assert placed["a"] == 0.5
    assert list(placed) == ["a", "b", "c", "d"]
    for low, high in (("b", "c"), ("c", "d")):
        assert placed[high] - placed[low] >= 14.9 / HEIGHT


def test_a_colour_has_one_meaning() -> None:
    """No two names share a colour, but for the usual batch norm, which charts call by several."""
    from evenly.lab.plots import COLORS, USUAL

    others = [color for color in COLORS.values() if color != USUAL]

    assert len(set(others)) == len(others)
    assert {name for name, color in COLORS.items() if color == USUAL} == {"batch", "before", "momentum 0.1"}


def test_log_ticks_are_few_and_round() -> None:
    """Powers of ten over many decades, the values themselves where few, 1, 2 and 5 otherwise."""
    assert log_ticks(0.001, 10, [0.001, 0.1, 10]) == [0.001, 0.01, 0.1, 1, 10]
    assert log_ticks(1, 16, [1, 2, 4, 8, 16]) == [1, 2, 4, 8, 16]
    assert log_ticks(5, 800, list(range(5, 800, 20))) == [5, 10, 20, 50, 100, 200, 500]
