"""How times are taken: turns, rotation, spreads. No test here looks at a clock's value."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evenly.bench import timing
from evenly.bench.judge import Inputs
from evenly.bench.shapes import Case

CASE = Case("batch", (4, 2, 3, 3))


class Clockwork:
    """A trial whose every step takes the same made-up time; remembers what it was asked."""

    def __init__(self, forward: float, backward: float) -> None:
        self.forward, self.backward = forward, backward
        self.calls: list[tuple[int, int]] = []

    def load(self, inputs: Sequence[Inputs]) -> None:
        """See `timing.Trial`."""
        self.inputs = len(inputs)

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """See `timing.Trial`."""
        self.calls.append((first, number))
        return self.forward * number, self.backward * number


def test_ratios_are_to_the_copy_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of 3 + 5 beside a copy of 2 costs 1.5 forward, 2.5 backward, 4 both."""
    monkeypatch.setattr(timing, "Copy", lambda: Clockwork(2.0, 0.0))
    copy, times = timing.measure(CASE, [Clockwork(3.0, 5.0)], cold=False, pace=timing.Pace(3, 1.0))

    medians = {part: spread.median for part, spread in times.copies.items()}
    assert medians == {"forward": 1.5, "backward": 2.5, "both": 4.0}
    assert times.seconds["both"] == timing.Spread(8.0, 8.0, 8.0)
    assert copy.copies["forward"].median == 1.0


def test_everyone_takes_a_turn_in_every_round_and_nobody_is_always_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order rotates from round to round, and inputs go on where the one before stopped."""
    order: list[str] = []

    class Named(Clockwork):
        def __init__(self, name: str) -> None:
            super().__init__(1.0, 0.0)
            self.name = name

        def steps(self, first: int, number: int) -> tuple[float, float]:
            order.append(f"{self.name}{first}")
            return super().steps(first, number)

    monkeypatch.setattr(timing, "Copy", lambda: Named("c"))
    timing.measure(CASE, [Named("a"), Named("b")], cold=True, pace=timing.Pace(3, 1.0))

    assert order[-9:] == ["c0", "a1", "b2", "a3", "b4", "c5", "b6", "c7", "a8"]


def test_cold_rotates_over_several_times_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold: at least four times the last-level cache, or 256 inputs; warm: one input."""
    monkeypatch.setattr(timing, "last_level_cache", lambda: 10 * CASE.bytes)
    monkeypatch.setattr(timing, "Copy", lambda: Clockwork(1.0, 0.0))
    trial = Clockwork(1.0, 1.0)
    timing.measure(CASE, [trial], cold=True, pace=timing.Pace(1, 1.0))
    assert trial.inputs == 40
    timing.measure(CASE, [trial], cold=False, pace=timing.Pace(1, 1.0))
    assert trial.inputs == 1
    monkeypatch.setattr(timing, "last_level_cache", lambda: 10**9)
    assert timing.sets_for(CASE) == 256
    monkeypatch.setattr(timing, "last_level_cache", lambda: 1)
    assert timing.sets_for(CASE) == 2


def test_a_block_of_steps_fills_the_time_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1 ms fill 50 ms with 50; steps longer than the time are taken one by one."""
    monkeypatch.setattr(timing, "Copy", lambda: Clockwork(1.0, 0.0))
    short, long = Clockwork(0.0005, 0.0005), Clockwork(1.0, 1.0)
    timing.measure(CASE, [short, long], cold=False, pace=timing.Pace(1, 0.05))
    assert short.calls[-1][1] == 50
    assert long.calls[-1][1] == 1


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    """Of 1 to 5: 3, 2 and 4, in any order; of one value, that value."""
    assert timing.Spread.of([5, 1, 4, 2, 3]) == timing.Spread(3, 2, 4)
    assert timing.Spread.of([7.0]) == timing.Spread(7.0, 7.0, 7.0)


def test_the_cache_is_read_from_the_system() -> None:
    """Whatever machine this is, its last-level cache has between 256 KiB and 4 GiB."""
    assert 1 << 18 <= timing.last_level_cache() <= 1 << 32
