"""Random networks through `evenly.fold`: none wrong, all folded that can be, wrong formulas found."""

from __future__ import annotations

import json

import pytest
from tests.tools.fold import mutants, others, soak, world

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("rank", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pattern", world.PATTERNS)
def test_every_pattern_is_folded_as_its_label_says(pattern: str, rank: int) -> None:
    """Each pattern alone, with two seeds: right in float64 and float32, folded where it can be, else left."""
    verdicts = [soak.check([(pattern, seed)], rank) for seed in range(2)]

    for verdict in verdicts:
        assert verdict is None or (verdict.faults == [] and verdict.folded == verdict.foldable), verdict


def test_random_networks_are_right() -> None:
    """Thirty random networks: none wrong, every foldable norm folded."""
    result = soak.run(0, lambda graphs: graphs < 30)

    assert result.wrong == []
    assert result.left == []
    assert result.foldable > 30


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_planted_wrong_formula_is_found(name: str) -> None:
    """Each of the wrong formulas shows in some network of its pattern."""
    with mutants.planted(name):
        found = any(soak.fails([(p, seed)], 1 + seed % 3) for seed in range(12) for p in mutants.WHERE[name])

    assert found


def test_a_failing_network_is_shrunk() -> None:
    """With a wrong formula planted, a network of four patterns shrinks to the one that shows it."""
    spec = [("linear_before", 1), ("transposed", 3), ("linear_behind", 2)]
    with mutants.planted("groups forgotten"):
        seeds = [s for s in range(12) if soak.fails([("transposed", s)], 2)]
        spec[1] = ("transposed", seeds[0])
        small, rank = soak.shrink(spec, 2, soak.fails)

    assert small == [("transposed", seeds[0])]
    assert rank <= 2


def test_random_networks_hold_every_pattern() -> None:
    """Every pattern is in at least one of a hundred networks."""
    drawn = [{name for name, _ in world.draw(seed)} for seed in range(1000)]

    assert all(sum(name in names for names in drawn) >= 10 for name in world.PATTERNS)


@pytest.mark.slow
def test_others_still_do_what_the_table_says() -> None:
    """Each case of `others.json` shows the fault that it names, with the releases that it names."""
    import onnxruntime
    import torch

    table = json.loads(others.TABLE.read_text("utf-8"))
    if (table["torch"], table["onnxruntime"]) != (torch.__version__.split("+")[0], onnxruntime.__version__):
        pytest.skip("the table is of other releases")
    for case in table["cases"]:
        found = others.TOOLS[case["tool"]]([(case["pattern"], case["seed"])], case["rank"])
        assert found == case["fault"], case
