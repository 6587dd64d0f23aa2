"""The order in which a model is examined, and what each step adds to the diagnosis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evenly.core.moments import Moments
from evenly.tools import causes, checks, measure, populations, scores, symptoms, trials
from evenly.tools.batches import samples_of
from evenly.tools.decision import Decision
from evenly.tools.diagnosis import Diagnosis
from evenly.tools.examined import examined
from evenly.tools.finding import Finding, Gap, Trial, ranked
from evenly.tools.labels import label_of
from evenly.tools.observe import Call
from evenly.tools.parts import BATCHES, SAMPLES, Parts, Source, split
from evenly.tools.pictures import channels
from evenly.tools.probe import Subject
from evenly.tools.stored import layers_of, view
from evenly.tools.xray import look

_SUSPECTS = 6  # layers that are tried one by one


class Examination:
    """One model on its way through the steps; findings are told as they come.

    Args:
        subject: the model.
        source: its data.
        loss: the user's, or None.
        say: takes lines of text.
    """

    def __init__(
        self, subject: Subject, source: Source, loss: scores.Loss | None, say: Callable[[str], None] | None
    ) -> None:
        self.subject, self.source, self._loss, self._say = subject, source, loss, say
        self.findings: list[Finding] = []
        self.said = ""
        self._by_batch: dict[str, list[Moments]] = {}
        self._start = time.monotonic()
        name = type(subject.model).__name__
        state = {k: v.detach().cpu().clone() for k, v in subject.model.state_dict().items() if isinstance(v, Tensor)}
        self._state = state
        self._result = Diagnosis(name, f"evenly.diagnose({name.lower()}, batches)")

    def tell(self, text: str) -> None:
        """One line of progress, with the seconds since the start."""
        if self._say is not None:
            self._say(f"[{time.monotonic() - self._start:5.1f} s] {text}")

    def add(self, found: Iterable[Finding]) -> None:
        """Keep and tell; a rule that has spoken on stored numbers is replaced by what was seen at work."""
        for finding in found:
            self.findings = [f for f in self.findings if f.rule != finding.rule] + [finding]
            self.tell(f"{finding.level}: {finding.rule}: {finding.evidence}")

    def probe(self, name: str, found: Iterable[Finding]) -> None:
        """Add what a probe finds; what it raises becomes a line, and does not end the diagnosis."""
        try:
            self.add(found)
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            self._result.examined.append(f"not examined, {name}: it raised {type(error).__name__}: {text}")

    def stored(self, calls: Mapping[str, int] | None = None) -> None:
        """What the numbers alone say."""
        known = {name: {"eps": s.eps, "momentum": s.momentum} for name, s in self.subject.sites.items()}
        found = look(layers_of(self._state, known, calls or {}), self._state)
        if calls is None:
            self.add(found)
            self.probe("attributes", symptoms.attributes(self.subject))
            self.probe("other processes", symptoms.unsynchronised(self.subject))
        else:  # counters are read again, now that shared layers are known
            rules = ("double-update", "counters-disagree")
            self.findings = [f for f in self.findings if f.rule not in rules]
            self.add(f for f in found if f.rule in rules)

    def begin(self) -> list[Any]:
        """The first batches."""
        given = self.source.more(BATCHES, SAMPLES)
        if not given:
            raise ValueError("batches is empty; a generator that was used up before gives nothing.")
        self.add(checks.one_element(self.subject, given[0]))
        return given

    @property
    def useless(self) -> bool:
        """Whether a norm erases its input, so that nothing behind it can be judged."""
        return any(f.rule == "one-element" for f in self.findings)

    def result(self) -> Diagnosis:
        """All of it."""
        self._result.findings = ranked(self.findings)
        return self._result

    def at_work(self, given: list[Any], *, endless: bool) -> None:
        """Everything that needs batches: the checks, the gap, its layer, the trials, the pictures."""
        subject = self.subject
        subject.look(given[0])
        lines, self._result.looked = examined(subject, self.said)
        self._result.examined = lines + self._result.examined
        self.probe("evaluating twice", checks.twice(subject, given[0]))
        if not any(f.rule == "random-evaluation" for f in self.findings):
            self.probe("evaluating alone", checks.alone(subject, given[0]))
        self.probe("the input of both forms", checks.same_input(subject, given[0]))
        self.probe("norms in use", symptoms.seen_in_use(subject))
        if subject.switching:
            self._compare(given, endless=endless)

    def _compare(self, given: list[Any], *, endless: bool) -> None:
        """Both forms, their gap, and what closes it."""
        subject, parts = self.subject, split(given)
        by_batch: dict[str, list[Moments]] = {}
        pool = subject.measure(
            parts.measure, see=lambda call: by_batch.setdefault(call.site.name, []).append(call.moments()),
            tick=lambda n: self.tell(f"measured, batch {n} of {len(parts.measure)}"),
        )  # fmt: skip
        if not pool.moments:
            self.add(_every_batch_bad(pool, causes.finite(given)))
            return
        self._counters()
        seen = populations.samples(subject, [*parts.measure, *parts.choose, *parts.confirm])
        found = None if seen is None else populations.groups(seen)
        self.probe("groups of data", populations.named(found, seen))
        distances = {n: measure.distance(subject.sites[n], m).nan_to_num(float("inf")).median().item()
                     for n, m in pool.moments.items()}  # fmt: skip
        gap, score = self._gap(given)
        bench = _bench(subject, pool, by_batch, parts.choose, score)
        single: list[Trial] = []
        if gap.unlike:
            suspects = sorted(distances, key=distances.__getitem__, reverse=True)[:_SUSPECTS]
            single = trials.single_layers(bench, suspects)
        self.add(symptoms.gap(gap, single, distances))
        self.add(symptoms.not_the_norms(gap, _chance(given)))
        self._causes(pool, seen, distances, parts)
        self.add(symptoms.stale(distances, self._named()))
        self.add(symptoms.small_batches(self._by_batch, samples_of(given[0])))
        self.probe("dropout", self._dropout(parts.measure[:2]))
        self.probe("one training step", symptoms.double_update(subject, given[0]))
        for trial in trials.remedies(bench):
            self.tell(f"tried: {trial.name}: {trial.score:.2f}")
            single.append(trial)
        # Of equal scores the gentlest comes first, then in the order tried.
        self._result.trials = sorted(single, key=lambda t: (-round(t.restored, 6), t.gentle))
        self._picture(distances, pool, parts)
        if gap.unlike:
            ids = None if found is None else found.of[sum(map(samples_of, [*parts.measure, *parts.choose])) :]
            decision = Decision(subject, self.source, self._state, self._result, self.findings, endless)
            decision.decide(single, bench, parts, ids)

    def _named(self) -> set[str]:
        """The layers whose fault an error or warning names already; the gap itself explains nothing."""
        general = ("train-eval-gap", "forms-disagree", "training-branch", "two-groups", "half-frozen")
        return {n for f in self.findings if f.level != "note" and f.rule not in general for n in f.layers}

    def _counters(self) -> None:
        calls = {n: c for n, c in self.subject.training.calls.items() if c > 1}
        if calls:
            self.stored(self.subject.training.calls)

    def _gap(self, given: list[Any]) -> tuple[Gap, scores.Score]:
        """Training form against the model's own evaluation form, sample by sample."""
        start = time.monotonic()
        moments = self._by_batch

        def keep(call: Call) -> None:
            if call.x.numel():
                moments.setdefault(call.site.name, []).append(call.moments())

        reference = self.subject.outputs(given, using=None, see=keep)
        outputs = self.subject.outputs(given, tick=lambda n: self.tell(f"evaluation form, batch {n} of {len(given)}"))
        score = self._score = scores.choose(given, outputs, reference, self._loss)
        samples = sum(max(samples_of(b), 1) for b in given)
        if not score.judges:
            apart = scores.disagreement(outputs, reference)
            noise = scores.disagreement(self._well_measured(given), reference)
            gap = Gap(score.name, score.unit, 0.0, apart, apart, apart > max(10.0, 2 * noise))
        else:
            before, after = score.values(outputs, given), score.values(reference, given)
            better = score.better(before, after)
            training, evaluation = score.shown(after), score.shown(before)
            least = 2.0 if score.unit == "points" else 0.05 * abs(training)
            lost = better.mean if better.mean == better.mean else 0.0
            gap = Gap(score.name, score.unit, training, evaluation, lost, better.low > 0 and lost > least)
        seconds = time.monotonic() - start
        gap = replace(gap, samples=samples, seconds=seconds, said=score.said, judges=score.judges)
        self._result.gap = gap
        self.tell(
            f"{gap.score}: {gap.training:.2f} with batch statistics, {gap.evaluation:.2f} with running statistics"
        )
        return gap, score

    def _well_measured(self, given: list[Any]) -> list[Any]:
        """Outputs with statistics of all this data: as far from training form as batches alone make."""
        pool = self.subject.measure(given)
        return self.subject.outputs(given, statistics=trials.statistics_of(self.subject, pool, Trial("", "")))

    def _causes(
        self, pool: measure.Pool, seen: populations.Samples | None, distances: dict[str, float], parts: Parts
    ) -> None:
        first = next(iter(distances))
        site, moments = self.subject.sites[first], pool.moments[first]
        self.probe("a scale factor", causes.file_scale(site, moments, first))
        if not any(f.rule == "scale-factor" for f in self.findings):
            good = self._as_good if self._score.judges else None
            self.probe("the input", causes.inputs(self.subject, parts.measure[:4], first, distances[first], good))
        if seen is not None and seen.name == first and distances[first] > 0.1:
            self.probe("a constant", causes.constant_taken(site, moments, first))
        named = any(f.rule in ("scale-factor", "input-changed", "two-groups") for f in self.findings)
        if self._result.gap is not None and self._result.gap.unlike and not named:
            self.probe("two populations", causes.mixture(site, moments, first))
        if seen is not None and seen.places > 1 and self._score.judges:
            self.probe("each sample alone", causes.by_itself(self.subject, parts.choose, self._score, pool))

    def _as_good(self, batches: list[Any]) -> bool:
        """Whether changed batches evaluate as well as the data given does in training form."""
        gap = self._result.gap
        assert gap is not None
        value = self._score.of(self.subject.outputs(batches), batches)
        least = 5.0 if gap.unit == "points" else 0.2 * abs(gap.training)
        return (gap.training - value) * (1 if self._score.up else -1) < least

    def _dropout(self, batches: list[Any]) -> Iterable[Finding]:
        if self.subject.unrun or not self.subject.training.random:
            return
        clean, noisy = self.subject.measure(batches), measure.Pool()
        chosen = set(self.subject.switching)

        def add(call: Call) -> None:
            if call.site.name in chosen and call.x.numel():
                noisy.add(call.site.name, call.moments())

        self.subject.run(batches, train=True, see=add, keep=False)
        yield from symptoms.dropout(noisy, clean)

    def _picture(self, distances: dict[str, float], pool: measure.Pool, parts: Parts) -> None:
        stored = {layer.name: layer for layer in layers_of(self._state)}
        self._result.layers = [view(stored[name], d) for name, d in distances.items() if name in stored]
        named = (f.layers[0] for f in self.findings if f.rule in ("train-eval-gap", "forms-disagree") and f.layers)
        culprit = next(named, max(distances, key=distances.__getitem__))
        if culprit in pool.moments:
            self._result.channels = channels(self.subject, parts.measure[:8], pool, culprit)


def _bench(
    subject: Subject, pool: measure.Pool, by_batch: dict[str, list[Moments]], batches: list[Any], score: scores.Score
) -> trials.Bench:
    outputs = subject.outputs(batches)
    reference = [] if score.judges else subject.outputs(batches, using=None)
    before = score.values(outputs, batches)
    shown = score.shown(before) if score.judges else scores.disagreement(outputs, reference)
    by_batch = {name: moments for name, moments in by_batch.items() if name in pool.moments}
    return trials.Bench(subject, pool, by_batch, batches, score, before, shown, reference)


def _chance(given: list[Any]) -> float:
    """What always the most frequent class scores, in percent; 0 without classes."""
    labels = [y.reshape(-1).cpu() for b in given if (y := label_of(b)) is not None and not y.is_floating_point()]
    if not labels:
        return 0.0
    counts = torch.cat(labels).unique(return_counts=True)[1]
    return 100 * float(counts.max() / counts.sum())


def _every_batch_bad(pool: measure.Pool, finite: bool) -> Iterable[Finding]:
    if pool.lost:
        yield Finding(
            "non-finite-input", "error", tuple(pool.lost),
            f"what reaches these norms holds NaN or infinity in every batch; the input itself is "
            f"{'finite' if finite else 'not'}.",
            "no statistic can be measured, and training with this is lost.",
            "weights are NaN or overflow before these layers: go back to an earlier checkpoint." if finite
            else "clean the data: look where these numbers come from.",
        )  # fmt: skip
