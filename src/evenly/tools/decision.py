"""Whether a file is to be written: a trial chosen on one part of the data, confirmed on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenly.tools import probe, scores, trials
from evenly.tools.batches import samples_of
from evenly.tools.diagnosis import Diagnosis
from evenly.tools.finding import Finding, Trial
from evenly.tools.labels import Values
from evenly.tools.mend import Mender
from evenly.tools.parts import Parts, Source
from evenly.tools.probe import Subject

_MOST = 20_000  # samples that an undecided interval is extended to


@dataclass
class Decision:
    """What a decision needs beside the trials.

    Args:
        subject: the model.
        source: its data, for an interval that does not decide.
        state: the model's state_dict as it was diagnosed.
        result: the diagnosis; the choice, its interval and what speaks against it are written there.
        findings: so far.
        endless: whether the data may have no end.
    """

    subject: Subject
    source: Source
    state: Mapping[str, Tensor]
    result: Diagnosis
    findings: Sequence[Finding]
    endless: bool

    def decide(self, tried: list[Trial], bench: trials.Bench, parts: Parts, ids: Tensor | None) -> None:
        """Choose a trial, and see on batches kept for it whether it is better."""
        result, subject, score = self.result, self.subject, bench.score
        chosen = trials.gentlest(tried, score)
        if chosen is None:
            return
        result.chosen = chosen
        confirm = list(parts.confirm) or list(parts.choose)
        statistics = trials.statistics_of(subject, bench.pool, chosen)
        before, reference = Values(*(t[:0] for t in bench.before)), []
        if not score.judges:
            reference = subject.outputs(confirm, using=None)
            result.refused = f"{result.gap.said if result.gap else ''}; give labels or a loss."
        elif not parts.confirm:
            result.refused = "there are too few samples to confirm anything; give more batches."
        else:
            before = self._confirm(confirm, statistics, score, ids)
        cause = next((f for f in self.findings if f.rule == "input-changed"), None)
        if cause is not None and not result.refused:
            result.refused = "the fault is in how the input is prepared, not in the file."
        result.mend = Mender(subject, self.state, self.source, self.endless, score, confirm, before, reference, ids)

    def _confirm(
        self, confirm: list[Any], statistics: probe.Statistics, score: scores.Score, ids: Tensor | None
    ) -> Values:
        """The interval of after minus before, on more and more data until it decides; the scores before."""
        subject, result = self.subject, self.result
        before = score.values(subject.outputs(confirm), confirm)
        after = score.values(subject.outputs(confirm, statistics=statistics), confirm)
        looks = 1
        result.confirmed = score.better(before, after)
        while result.confirmed.low <= 0 < result.confirmed.high and sum(map(samples_of, confirm)) < _MOST:
            more = self.source.more(len(confirm), 1)
            if not more:
                break
            looks, ids = looks + 1, None
            confirm += more
            old, new = subject.outputs(more), subject.outputs(more, statistics=statistics)
            before, after = _joined(before, score.values(old, more)), _joined(after, score.values(new, more))
            # Each further look may err half as often as the one before.
            result.confirmed = score.better(before, after, strict=1 + 0.14 * (looks - 1))
        if not result.confirmed.low > 0:
            result.refused = (
                f"it is not shown that {result.chosen.name if result.chosen else ''} is better: {result.confirmed}."
            )
        if ids is not None and len(ids) == len(before.of):
            for number in (0, 1):
                part = score.better(before, after, keep=ids == number)
                if part.mean < 0 and part.mean < -0.25 * (part.high - part.low):
                    result.refused = f"one of the two groups that the data falls into would lose: {part}."
        return before


def _joined(a: Values, b: Values) -> Values:
    return Values(torch.cat((a.of, b.of)), torch.cat((a.weight, b.weight)))
