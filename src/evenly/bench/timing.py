"""How times are taken: in turns, beside a copy of the same tensor, warm and cold.

Absolute times of one machine say little, so each time is also a ratio to a copy: ``copy_`` of the
same tensor by the same threads into a buffer that stays warm. Peers take turns within a round, so
that a slow second hits all of them, and a ratio is formed within its round. Cold, the inputs rotate
over several times the last-level cache, as a network's activations do; warm, one input is reused.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Protocol

import torch

from evenly.bench.judge import Inputs, make_rotation
from evenly.bench.shapes import Case

PARTS = ("forward", "backward", "both")
_MOST_SETS = 256


class Trial(Protocol):
    """A peer made ready for one case."""

    def load(self, inputs: Sequence[Inputs]) -> None:
        """Take the inputs over which steps rotate (`evenly.bench.judge.make_rotation`)."""

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """Seconds spent forward and backward in ``number`` steps, on inputs ``first``, ``first + 1``, …"""


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and their first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(median(ordered), ordered[round(last * 0.25)], ordered[round(last * 0.75)])


@dataclass(frozen=True)
class Times:
    """One peer on one case: seconds a step, and the same in copies of the tensor, by part."""

    seconds: dict[str, Spread]
    copies: dict[str, Spread]


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, and seconds that each peer gets in a round."""

    rounds: int = 7
    seconds: float = 0.06

    @classmethod
    def quick(cls) -> Pace:
        """Enough to see an order, in a few seconds."""
        return cls(3, 0.01)


class Copy:
    """The measure: a copy of the same tensor by the same threads into a warm buffer."""

    def load(self, inputs: Sequence[Inputs]) -> None:
        """See `Trial`."""
        self._from = [one.x.detach() for one in inputs]
        self._to = torch.empty_like(self._from[0])

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """See `Trial`; a copy has no backward."""
        start = perf_counter()
        for step in range(first, first + number):
            self._to.copy_(self._from[step % len(self._from)])
        return perf_counter() - start, 0.0


def measure(case: Case, trials: Sequence[Trial], *, cold: bool, pace: Pace) -> list[Times]:
    """Time ``trials`` in turns; the first result belongs to the copy.

    Args:
        case: what they compute.
        trials: the peers, made ready.
        cold: whether inputs rotate over several times the last-level cache.
        pace: how long.
    """
    everyone: list[Trial] = [Copy(), *trials]
    inputs = make_rotation(case, sets_for(case) if cold else 1)
    for trial in everyone:
        trial.load(inputs)
    rounds: list[list[tuple[float, float]]] = [[] for _ in everyone]
    with _quiet():
        numbers = [_steps_for(trial, pace.seconds) for trial in everyone]
        at = 0
        for turn in range(pace.rounds):
            for place in range(len(everyone)):
                which = (place + turn) % len(everyone)
                forward, backward = everyone[which].steps(at, numbers[which])
                rounds[which].append((forward / numbers[which], backward / numbers[which]))
                at += numbers[which]
    copies = [forward for forward, _ in rounds[0]]
    return [_times(found, copies) for found in rounds]


def sets_for(case: Case) -> int:
    """How many inputs to rotate over: four times the last-level cache, 256 at most."""
    return min(_MOST_SETS, max(2, -(-4 * last_level_cache() // case.bytes)))


def last_level_cache() -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not tell."""
    sizes = [32 << 20]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = file.read_text().strip()[:-1], file.read_text().strip()[-1]
        sizes.append(int(number) << {"K": 10, "M": 20}.get(unit, 0))
    return max(sizes[1:] or sizes)


def _steps_for(trial: Trial, seconds: float) -> int:
    """How many steps fill ``seconds``, found by trying; also the warm-up."""
    trial.steps(0, 1)
    number = 1
    while True:
        spent = sum(trial.steps(0, number))
        if spent >= seconds / 4 or number >= 4096:
            return max(1, min(4096, round(number * seconds / max(spent, 1e-9))))
        number *= 4


def _times(found: list[tuple[float, float]], copies: list[float]) -> Times:
    parts = {
        "forward": [forward for forward, _ in found],
        "backward": [backward for _, backward in found],
        "both": [forward + backward for forward, backward in found],
    }
    seconds = {part: Spread.of(values) for part, values in parts.items()}
    ratios = {
        part: Spread.of([value / copy for value, copy in zip(values, copies, strict=True)])
        for part, values in parts.items()
    }
    return Times(seconds, ratios)


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection between two readings of the clock."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
