"""Data for a diagnosis: enough of it, in three disjoint parts drawn without regard to order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from evenly.tools.batches import parts_of, samples_of, take

BATCHES, SAMPLES = 16, 512  # to begin with: as many batches, or more where they are small
_PIECES = 6


class Source:
    """The batches given, read as far as needed and no further.

    Args:
        batches: an iterable; one that can be read again is read anew for `whole`.
        limit: at most so many batches.
    """

    def __init__(self, batches: Iterable[Any], limit: int | None) -> None:
        self._batches, self._limit = batches, limit
        self._left = iter(take(batches, limit))
        self.taken: list[Any] = []

    def more(self, batches: int, samples: int) -> list[Any]:
        """Further batches: so many, and on until there are so many samples; fewer at the end."""
        new: list[Any] = []
        count = 0
        while len(new) < batches or count < samples:
            batch = next(self._left, None)
            if batch is None:
                break
            new.append(batch)
            count += max(samples_of(batch), 1)
        self.taken += new
        return new

    def whole(self) -> Iterator[Any]:
        """All the data: once more where that can be, else what was taken and what is left."""
        again = iter(take(self._batches, self._limit))
        if again is not self._batches and iter(self._batches) is not self._batches:
            yield from again
        else:
            left, self._left = self._left, iter(())
            yield from chain(list(self.taken), left)


class Parts(NamedTuple):
    """Three disjoint parts: to measure on, to choose on, to confirm on."""

    measure: list[Any]
    choose: list[Any]
    confirm: list[Any]


def split(batches: Sequence[Any]) -> Parts:
    """The batches in three parts, drawn at random (always alike), so that no order of theirs decides.

    A few large batches are cut first; single samples that cannot be cut are used for all.
    """
    pieces = _cut(_cut(list(batches), _PIECES, 16), 3, 2)
    if len(pieces) < 3:
        return Parts(pieces, pieces, [])
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0)).tolist()
    first, second = max(1, round(0.4 * len(pieces))), max(2, round(0.7 * len(pieces)))
    cuts = order[:first], order[first:second], order[second:]
    return Parts(*([pieces[i] for i in sorted(cut)] for cut in cuts))


def _cut(pieces: list[Any], number: int, least: int) -> list[Any]:
    """The largest halved until there are so many; none of fewer than ``least`` samples is cut."""
    while len(pieces) < number:
        sizes = [samples_of(piece) for piece in pieces]
        at = max(range(len(sizes)), key=sizes.__getitem__)
        if sizes[at] < least:
            break
        pieces = [*pieces[:at], *parts_of(pieces[at], sizes[at] // 2), *pieces[at + 1 :]]
    return pieces
