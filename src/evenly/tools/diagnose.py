"""Why is eval() worse than train()? A model examined at work, and its remedies tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools import measure, probe, scores, symptoms, trials, walk
from evenly.tools.batches import Forward, parts_of, samples_of, take
from evenly.tools.finding import Channel, Diagnosis, Finding, Trial, ranked
from evenly.tools.probe import Observed, Subject
from evenly.tools.recalibrate import set_statistics
from evenly.tools.stored import layers_of, view
from evenly.tools.xray import look

_SUSPECTS = 6  # layers that are tried one by one
_BINS = 48


@dataclass
class _Report:
    """Findings as they come, each told at once."""

    say: Callable[[str], None] | None
    findings: list[Finding] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def tell(self, text: str) -> None:
        """One line of progress, with the seconds since the start."""
        if self.say is not None:
            self.say(f"[{time.monotonic() - self.start:5.1f} s] {text}")

    def add(self, found: Iterable[Finding]) -> None:
        """Keep and tell; a rule that has spoken on stored numbers is replaced by what was seen at work."""
        for finding in found:
            self.findings = [f for f in self.findings if f.rule != finding.rule] + [finding]
            self.tell(f"{finding.level}: {finding.rule}: {finding.evidence}")

    def named(self) -> set[str]:
        """The layers whose fault an error or warning names already; the gap itself explains nothing."""
        return {n for f in self.findings if f.level != "note" and f.rule != "train-eval-gap" for n in f.layers}


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    loss: scores.Loss | None = None,
    limit: int = 16,
    say: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say why a model evaluates worse than it trains, and what restores it.

    The model runs in training form (norms use each batch's statistics) and in evaluation form
    (running statistics), dropout off in both, on every other batch; what its norms see is measured
    on the rest. Then each remedy is tried and scored. Afterwards the model is as before: weights,
    statistics, gradients, modes and random state.

    Args:
        model: any torch model; plain torch.nn norms are welcome.
        batches: an iterable of batches like those of training: a tensor, a tuple whose first item is
            the input (and whose second is the label), or a mapping of keywords.
        forward: ``forward(model, batch)`` for batches that need another call.
        loss: ``loss(output, batch)``, less is better. Default: accuracy where labels are classes;
            without labels the disagreement with training form.
        limit: how many batches to use at most; a single one is cut into two halves.
        say: takes lines of text, such as ``print``: progress, and each finding as it is found.

    Returns:
        The diagnosis: ``findings``, ``trials``, ``table()``, ``to_html(path)``, ``fix(path)``.

    Raises:
        ValueError: no batches.

    Example:
        >>> from torch import nn
        >>> x = torch.randn(256, 3)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, momentum=0.9), nn.Linear(8, 2))
        >>> _ = [model(batch) for batch in x.split(64)]
        >>> [f.rule for f in diagnose(model, x.split(64)).findings if f.level == "warning"]
        ['momentum-inverted']
    """
    report, subject = _Report(say), Subject(model, forward)
    name = type(model).__name__
    result = Diagnosis(name, f"evenly.diagnose({name.lower()}, batches)", state=_state(model))
    report.add(_stored(model, {}))
    report.add(symptoms.attributes(subject))
    report.add(symptoms.unsynchronised(subject))
    given = list(take(batches, limit))
    if not given:
        raise ValueError("batches is empty; a generator that was used up before gives nothing.")
    report.add(symptoms.one_element(subject, given[0]))
    if subject.norms and not any(f.rule == "one-element" for f in report.findings):
        _at_work(subject, given, loss, report, result)
    result.findings = ranked(report.findings)
    return result


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}


def _stored(model: nn.Module, calls: Mapping[str, int]) -> list[Finding]:
    """What the numbers alone say."""
    settings = {
        name: {key: getattr(norm, key) for key in ("eps", "momentum") if hasattr(norm, key)}
        for name, norm in walk.batch_norms(model)
    }
    tensors = model.state_dict()
    return look(layers_of(tensors, settings, calls), tensors)


def _at_work(subject: Subject, given: list[Any], loss: scores.Loss | None, report: _Report, result: Diagnosis) -> None:
    """Everything that needs batches: the gap, its layer, the trials and the pictures."""
    fit, held = _split(given)
    seen = probe.observe(subject, fit, lambda n: report.tell(f"training form, batch {n} of {len(fit)}"))
    seen.samples = samples_of(fit[0])
    if set(seen.calls.values()) - {1}:  # counters are read again, now that shared layers are known
        report.findings = [f for f in report.findings if f.rule not in ("double-update", "counters-disagree")]
        report.add(f for f in _stored(subject.model, seen.calls) if f.rule in ("double-update", "counters-disagree"))
    distances = probe.distances(subject, seen.pool)
    reference = subject.outputs(held, using=None)
    outputs = subject.outputs(held, tick=lambda n: report.tell(f"evaluation form, batch {n} of {len(held)}"))
    score = scores.choose(held, reference, loss, _noise(subject, seen, held, reference))
    gap = result.gap = score.gap(score.of(reference), score.of(outputs))
    report.tell(f"{gap.score}: {gap.training:.2f} with batch statistics, {gap.evaluation:.2f} with running statistics")
    bench = trials.Bench(subject, seen, held, score, gap)
    single: list[Trial] = []
    if gap.unlike:
        suspects = sorted(distances, key=distances.__getitem__, reverse=True)[:_SUSPECTS]
        single = trials.single_layers(bench, suspects)
    report.add(symptoms.gap(gap, single, distances))
    report.add(symptoms.stale(distances, report.named()))
    report.add(symptoms.small_batches(seen))
    report.add(symptoms.dropout(probe.with_dropout(subject, fit[:2]), _of(seen, 2)))
    report.add(symptoms.double_update(subject, given[0]))
    for trial in trials.remedies(bench):
        report.tell(f"tried: {trial.name}: {trial.score:.2f}")
        single.append(trial)
    # Of equal scores the remedy that touches one layer comes first, then in the order tried.
    result.trials = sorted(single, key=lambda t: (-round(t.restored, 6), not t.layers))
    stored = {layer.name: layer for layer in layers_of(subject.model.state_dict())}
    result.layers = [view(stored[name], d) for name, d in distances.items() if name in stored]
    result.channels = _channels(subject, fit, seen, _culprit(report.findings, distances))


def _split(given: list[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to measure on, and batches to score on."""
    if len(given) > 1:
        return given[0::2], given[1::2]
    size = samples_of(given[0])
    halves = parts_of(given[0], size // 2) if size > 3 else [given[0]]
    return [halves[0]], [halves[-1]]


def _noise(subject: Subject, seen: Observed, held: list[Any], reference: list[Any]) -> float:
    """How far well-measured statistics are from training form: what batches alone make."""
    with walk.restored(subject.model):
        set_statistics(subject.model, seen.pool)
        return scores.disagreement(subject.outputs(held), reference)


def _of(seen: Observed, batches: int) -> measure.Pool:
    """The pool of the first batches alone."""
    pool = measure.Pool()
    for name, moments in seen.by_batch.items():
        for m in moments[: batches * seen.calls[name]]:
            pool.add(name, m)
    return pool


def _culprit(findings: list[Finding], distances: Mapping[str, float]) -> str:
    """The layer to picture: that of the gap, else the one farthest from its data."""
    for finding in findings:
        if finding.rule == "train-eval-gap" and finding.layers:
            return finding.layers[0]
    return max(distances, key=distances.__getitem__)


def _channels(subject: Subject, fit: list[Any], seen: Observed, layer: str, most: int = 3) -> list[Channel]:
    """Distributions of the worst channels of one layer, against its running statistics."""
    norm, moments = subject.norms[layer], seen.pool.moments[layer]
    apart = measure.distance(norm, moments).nan_to_num(torch.inf)
    worst = apart.topk(min(most, len(apart))).indices.tolist()
    values: dict[int, list[Tensor]] = {c: [] for c in worst}

    def keep(name: str, norm: nn.Module, x: Tensor, m: Any) -> None:
        if name == layer:
            for c in worst:
                values[c].append(x.detach().select(getattr(norm, "channel", 1), c).flatten().cpu().float())

    subject.outputs(fit, using=None, observe=keep)
    mean, var = (t.cpu() for t in measure.running(norm))
    std = moments.var.sqrt().cpu()
    return [
        _channel(layer, c, torch.cat(values[c]), float(moments.mean[c]), float(std[c]), float(mean[c]), float(var[c]))
        for c in worst
    ]


def _channel(layer: str, number: int, x: Tensor, mean: float, std: float, running: float, var: float) -> Channel:
    x = x[torch.isfinite(x)]
    low, high = (mean - 4 * std - 1e-6, mean + 4 * std + 1e-6)
    density, edges = torch.histogram(x.clamp(low, high), _BINS, range=(low, high), density=True)
    return Channel(
        layer, number, tuple(edges.tolist()), tuple(density.tolist()), mean, std, running, max(var, 0.0) ** 0.5
    )
