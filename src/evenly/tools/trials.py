"""Remedies, each tried on batches that it was not measured on; nothing is written into the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evenly.core.running import ema
from evenly.tools.batches import parts_of, samples_of
from evenly.tools.finding import Trial
from evenly.tools.labels import Values, tensor_of
from evenly.tools.measure import Pool
from evenly.tools.probe import Statistics, Subject, handed
from evenly.tools.recalibrate import settled
from evenly.tools.scores import Score, disagreement


@dataclass
class Bench:
    """Where remedies are tried.

    Args:
        subject: the model.
        pool: what its norms saw on other batches.
        by_batch: the moments of each of those, by site.
        batches: to choose on.
        score: what outputs are worth.
        before: what the model's own ``eval()`` scores there.
        shown: the same as one number.
        reference: outputs in training form, where agreement is the score.
    """

    subject: Subject
    pool: Pool
    by_batch: dict[str, list[Any]]
    batches: Sequence[Any]
    score: Score
    before: Values
    shown: float
    reference: Sequence[Any]

    def try_statistics(self, trial: Trial) -> Trial:
        """What the model scores with a trial's statistics in place of its own."""
        statistics = statistics_of(self.subject, self.pool, trial)
        return self.scored(trial, self.subject.outputs(self.batches, statistics=statistics))

    def scored(self, trial: Trial, outputs: Sequence[Any]) -> Trial:
        """The trial with its score."""
        if not self.score.judges:
            value = disagreement(outputs, self.reference)
            return trial.with_score(value, self.shown - value, Values(torch.zeros(0), torch.zeros(0)))
        values = self.score.values(outputs, self.batches)
        value = self.score.shown(values)
        restored = (value - self.shown) * (1 if self.score.up else -1)
        if self.shown != self.shown and value == value:  # NaN before
            restored = float("inf")
        return trial.with_score(value, restored if restored == restored else float("-inf"), values)


def statistics_of(subject: Subject, pool: Pool, trial: Trial) -> Statistics:
    """The mean and variance that a trial gives each site it changes."""
    only = trial.layers or None
    return {name: (mean, var) for name, mean, var in settled(subject.sites, pool, only, trial.blend)}


def single(name: str, of: int) -> Trial:
    """Recalibrating one layer alone."""
    return Trial(
        f"recalibrate {name or '(model)'} alone", f"recalibrate, of {name or 'the model'} only", layers=(name,),
        gentle=1 / of, recipe="recalibrate",
    )  # fmt: skip


def single_layers(bench: Bench, names: Sequence[str]) -> list[Trial]:
    """Each suspect alone; the best first."""
    tried = [bench.try_statistics(single(name, len(bench.pool.moments))) for name in names]
    return sorted(tried, key=lambda t: -t.restored)


def remedies(bench: Bench) -> Iterator[Trial]:
    """Everything but single layers, one after the other."""
    yield bench.try_statistics(
        Trial("recalibrate all", "evenly.recalibrate(model, batches)", recipe="recalibrate")
    )  # fmt: skip
    for blend in (0.25, 0.5, 0.75):
        yield bench.try_statistics(
            Trial(f"adapt, blend {blend}", f"evenly.adapt(model, batches, blend={blend})", blend=blend, gentle=blend,
                  recipe="recalibrate")
        )  # fmt: skip
    subject = bench.subject
    momentum = _other_momentum(subject)
    trial = Trial(f"go on with momentum {momentum:g}", f"momentum={momentum:g}, and train on")
    yield bench.scored(trial, subject.outputs(bench.batches, statistics=_average(bench, momentum)))
    trial = Trial("batch statistics at test time", "keep norms in training form: predictions then depend on the batch")
    yield bench.scored(trial, subject.outputs(bench.batches, using=None))
    yield from _ghosts(bench)
    if not subject.unrun:
        statistics = statistics_of(subject, bench.pool, Trial("", ""))
        outputs, _ = subject.run(bench.batches, train=True, given=handed((), statistics))
        yield bench.scored(
            Trial("freeze after recalibrating, in train()", "evenly.freeze(model), and train on"), outputs
        )  # fmt: skip


def _other_momentum(subject: Subject) -> float:
    """The other way round where momentum looks inverted, else torch's default or a tenth of it."""
    now = next((m for site in subject.sites.values() if (m := site.momentum) is not None), 0.1)
    return max(1 - now, 0.01) if now >= 0.5 else (0.01 if now == 0.1 else 0.1)


def _average(bench: Bench, momentum: float) -> Statistics:
    """The running statistics after the batches seen, at another momentum."""
    weight, found = ema(momentum), {}
    for name, batches in bench.by_batch.items():
        mean, var = bench.subject.sites[name].read()
        for seen, moments in enumerate(batches, 1):
            mean = mean + weight(seen) * (moments.mean.to(mean.device) - mean)
            var = var + weight(seen) * (moments.unbiased_var.to(var.device) - var)
        found[name] = (mean, var)
    return found


def _ghosts(bench: Bench) -> Iterator[Trial]:
    """Batch statistics over parts of a batch: what the model would say in smaller batches."""
    size = 8
    if all(samples_of(batch) >= 2 * size for batch in bench.batches):
        outputs = []
        for batch in bench.batches:
            parts = bench.subject.outputs(parts_of(batch, size), using=None)
            outputs.append(torch.cat([tensor_of(part) for part in parts]))
        yield bench.scored(
            Trial(f"batch statistics over ghosts of {size}", f"evenly.convert(model, norm='ghost:…'), {size} each"),
            outputs,
        )  # fmt: skip


def gentlest(trials: Sequence[Trial], score: Score) -> Trial | None:
    """Of the trials that a file can hold, the gentlest within one standard error of the best.

    A remedy is gentle that changes few layers, by little. ``trials`` are those that restore something.
    """
    good = [t for t in trials if t.recipe and t.restored > 0]
    if not good:
        return None
    best = max(good, key=lambda t: t.restored)
    ties = [t for t in good if t is best or _ties(t, best, score)]
    return min(ties, key=lambda t: (t.gentle, -t.restored))


def _ties(trial: Trial, best: Trial, score: Score) -> bool:
    if not score.judges:
        return trial.restored >= best.restored - 1.0
    between = score.better(trial.values, best.values)
    error = (between.high - between.low) / 4
    # Half of what is restored given away is no tie, however few the samples.
    return between.mean <= min(error, 0.1 * best.restored)
