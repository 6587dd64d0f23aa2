"""The soak: random networks through `evenly.fold`, against float64; failing ones shrunk to a line that repeats them.

Run it by ``make fold-soak MINUTES=5``, or ``python -m tests.tools.fold.soak --graphs 200 --seed 0``.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from tests.tools.fold import mutants, world
from tests.tools.fold.world import Spec

import evenly

LIMIT, TIMES = 1e-10, 8


class Verdict(NamedTuple):
    """What came of one network: faults, and how many of the foldable norms were folded."""

    faults: list[str]
    foldable: int
    folded: int


def check(spec: Spec, rank: int) -> Verdict | None:
    """Fold one network in float64 and in float32, and compare; None where the network cannot run."""
    torch.manual_seed(0)
    try:
        net = world.build(spec, rank)
        with torch.no_grad():
            right = net.model(net.x)
            assert right.numel()
    except (RuntimeError, ValueError, AssertionError):
        return None  # a kernel greater than what is left of the input
    faults: list[str] = []
    try:
        folded = evenly.fold(net.model, net.x)
        if net.foldable + net.left and _distance(folded(net.x), right) > LIMIT:
            faults.append("wrong in float64")
        other = torch.randn(3, *net.x.shape[1:], dtype=torch.float64)
        with torch.no_grad():
            answers = folded(other), net.model(other)
        if _distance(*answers) > LIMIT:
            faults.append("wrong in float64 on another batch")
        refused = folded.certificate["refused"]
        faults += [f"caught by the certificate: {r['reason']}" for r in refused if r["reason"].startswith("measured")]
        if len(refused) < net.left:
            faults.append(f"{net.left} cannot be folded, {len(refused)} were left")
        faults += _in_float32(spec, rank, right)
    except Exception as error:  # whatever it is, it is the finding
        return Verdict([*faults, f"{type(error).__name__}: {error}"[:300]], net.foldable, 0)
    return Verdict(faults, net.foldable, net.foldable - max(0, len(refused) - net.left))


def _in_float32(spec: Spec, rank: int, right: torch.Tensor) -> list[str]:
    net = world.build(spec, rank, torch.float32)
    x = torch.cat([net.x, *(torch.randn_like(net.x) for _ in range(6))])  # the worst of many: one may be lucky
    with torch.no_grad():
        folded = evenly.fold(net.model, net.x)
        exact = world.build(spec, rank).model.double()
        _copy_state(net.model, exact)
        truth = exact(x.double())
        before, after = _distance(net.model(x), truth), _distance(folded(x), truth)
    # Where a running variance is 0, a scale of 316 meets a saturated sigmoid, and the unfolded error may be luckily 0.
    floor = 64 * torch.finfo(torch.float32).eps * max(1.0, float(truth.abs().max()))
    return [f"wrong in float32: {after:.1e}, unfolded {before:.1e}"] if after > max(TIMES * before, floor) else []


def _copy_state(source: torch.nn.Module, target: torch.nn.Module) -> None:
    target.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in source.state_dict().items()})


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max()) if one.shape == other.shape else float("inf")


def shrink(spec: Spec, rank: int, fails: Callable[[Spec, int], bool]) -> tuple[Spec, int]:
    """The smallest specification that still fails: patterns left out, then a smaller rank."""
    again = True
    while again:
        again = False
        for place in range(len(spec)):
            less = spec[:place] + spec[place + 1 :]
            if less and fails(less, rank):
                spec, again = less, True
                break
    for smaller in range(1, rank):
        if fails(spec, smaller):
            return spec, smaller
    return spec, rank


def fails(spec: Spec, rank: int) -> bool:
    """Whether a network shows a fault, or a foldable norm that was left."""
    verdict = check(spec, rank)
    return verdict is not None and bool(verdict.faults or verdict.folded < verdict.foldable)


class Result(NamedTuple):
    """What a run found."""

    graphs: int
    foldable: int
    folded: int
    wrong: list[str]
    left: list[str]
    patterns: Counter[str]


def run(seed: int, more: Callable[[int], bool], say: Callable[[str], None] = lambda line: None) -> Result:
    """Networks from ``seed`` on while ``more(number)``."""
    graphs = foldable = folded = 0
    wrong: list[str] = []
    left: list[str] = []
    patterns: Counter[str] = Counter()
    while more(graphs):
        spec, rank = world.draw(seed), 1 + seed % 3
        seed += 1
        verdict = check(spec, rank)
        if verdict is None:
            continue
        graphs, foldable, folded = graphs + 1, foldable + verdict.foldable, folded + verdict.folded
        patterns.update({name for name, _ in spec})
        if verdict.faults or verdict.folded < verdict.foldable:
            small = shrink(spec, rank, fails)
            line = f"check({small[0]!r}, {small[1]}): {check(*small)}"
            (wrong if verdict.faults else left).append(line)
            say(line)
    return Result(graphs, foldable, folded, wrong, left, patterns)


def caught(seed: int, graphs: int) -> dict[str, bool]:
    """For each planted wrong formula, whether ``graphs`` networks show it."""
    found = {}
    for name in mutants.MUTANTS:
        with mutants.planted(name):
            found[name] = any(
                fails([(pattern, seed + k)], 1 + k % 3) for k in range(graphs) for pattern in mutants.WHERE[name]
            )
    return found


def main() -> int:
    """Print counts; status 1 if anything was wrong, less than 99 % folded, or a planted formula missed."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--minutes", type=float)
    ask.add_argument("--graphs", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * (asked.minutes or 0)
    more = (lambda _: time.monotonic() < until) if asked.minutes else (lambda graphs: graphs < asked.graphs)
    result = run(asked.seed, more, print)
    share = result.folded / max(1, result.foldable)
    print(f"{result.graphs} networks from seed {asked.seed}: {len(result.wrong)} wrong")
    print(f"{result.folded} of {result.foldable} foldable norms folded ({share:.2%})")
    rare = [name for name in world.PATTERNS if result.patterns[name] < 0.01 * result.graphs]
    print(f"patterns in less than 1 % of the networks: {', '.join(rare) or 'none'}")
    found = caught(0, 12)
    print(
        f"planted wrong formulas found: {sum(found.values())} of {len(found)};"
        f" missed: {[name for name, seen in found.items() if not seen]}"
    )
    return int(bool(result.wrong) or share < 0.99 or not all(found.values()) or bool(rare))


if __name__ == "__main__":
    sys.exit(main())
