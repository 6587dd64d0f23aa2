"""Rules over what was seen of a model at work: each yields findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from evenly.core.moments import Moments
from evenly.nn.sync import gathered
from evenly.tools import measure, probe, walk
from evenly.tools.finding import Finding, Gap, Trial, listed
from evenly.tools.probe import Observed, Subject
from evenly.tools.rules import RECALIBRATE

FAR = 0.5  # standard deviations: a layer's running statistics are elsewhere


def one_element(subject: Subject, batch: Any) -> Iterator[Finding]:
    """Norms over a single element."""
    bad = probe.one_element(subject, batch)
    if bad:
        name, shape = next(iter(bad.items()))
        yield Finding(
            "one-element", "error", tuple(bad),
            f"each mean is taken over one element: the input of {name or 'the model'} has shape {shape}.",
            "x − mean is 0: the output is the bias, whatever the input; torch refuses some of these in training.",
            "larger batches or inputs, fewer groups, or no norm there; for a last batch of one: drop_last=True.",
        )  # fmt: skip


def attributes(subject: Subject) -> Iterator[Finding]:
    """What the modules say themselves: batches left out, statistics not kept."""
    skipped = {
        name: int(count)
        for name, norm in walk.batch_norms(subject.model)
        if (count := getattr(norm, "skipped_batches", None)) is not None and int(count)
    }
    if skipped:
        yield Finding(
            "skipped-batches", "warning", tuple(skipped),
            f"{max(skipped.values())} batches with NaN or infinity were left out of the running statistics.",
            "the statistics are sound, but something before these layers overflows or divides by zero.",
            "look at those batches; under mixed precision, at the loss scale.",
        )  # fmt: skip
    untracked = [name for name, norm in walk.batch_norms(subject.model) if norm._buffers.get("running_mean") is None]
    untracked = [name for name in untracked if "running_mean" in dict(walk.batch_norms(subject.model))[name]._buffers]
    if untracked:
        yield Finding(
            "untracked", "warning", tuple(untracked), "these layers keep no running statistics.",
            "in evaluation, too, a sample's output depends on the others in its batch.",
            "track_running_stats=True, then recalibrate.",
        )  # fmt: skip


def unsynchronised(subject: Subject) -> Iterator[Finding]:
    """Running statistics that differ between processes."""
    names = list(subject.norms)
    parts = [torch.cat(measure.running(norm)).cpu() for norm in subject.norms.values()]
    everyone = torch.stack(gathered(torch.cat(parts) if parts else torch.zeros(0)))
    apart = (everyone - everyone[0]).abs().amax(0)
    by_layer = apart.split([len(part) for part in parts]) if parts else ()
    bad = [name for name, part in zip(names, by_layer, strict=True) if bool((part > 0).any())]
    if bad:
        yield Finding(
            "unsynchronised", "warning", tuple(bad),
            f"running statistics differ between {len(everyone)} processes, by up to {float(apart.max()):.3g}.",
            "each process evaluates another model, and the checkpoint holds the first one's.",
            "evenly.pool_statistics(model) before evaluating and saving, or train with evenly.SyncBatchNorm.",
        )  # fmt: skip


def double_update(subject: Subject, batch: Any) -> Iterator[Finding]:
    """Counters that move in backward."""
    twice = probe.counted_twice(subject, batch)
    if twice:
        first, again = next(iter(twice.values()))
        yield Finding(
            "double-update", "error", tuple(twice),
            f"one training step raised num_batches_tracked by {first} in forward and by {again} more in backward.",
            "activation checkpointing runs the forward twice and each batch enters twice: momentum m acts as "
            "1 − (1 − m)².",
            "evenly.convert(model): its layers know a recomputation; for the statistics at hand, " + RECALIBRATE,
        )  # fmt: skip


def dropout(noisy: measure.Pool, clean: measure.Pool) -> Iterator[Finding]:
    """Inputs whose variance is larger with dropout than without it."""
    ratio = {}
    for name, moments in noisy.moments.items():
        if name in clean.moments:
            var = clean.moments[name].var
            ratio[name] = float(((moments.var + 1e-12) / (var + 1e-12)).median())
    bad = {name: r for name, r in ratio.items() if r > 1.15}
    if bad:
        worst = max(bad, key=bad.__getitem__)
        yield Finding(
            "dropout-before-norm", "warning", tuple(bad),
            f"with dropout on, the input of {listed((worst,))} has {bad[worst]:.2f} times the variance it has without.",
            "running variances are those under dropout; evaluation has none, and its outputs come out too small.",
            "put dropout behind the last norm; for this model, " + RECALIBRATE + " It runs with dropout off.",
        )  # fmt: skip


def small_batches(seen: Observed) -> Iterator[Finding]:
    """Means that scatter from batch to batch, measured as the size of batch that would explain it."""
    sizes = {name: size for name, batches in seen.by_batch.items() if (size := _effective(batches)) is not None}
    bad = {name: size for name, size in sizes.items() if size < 8}
    if not bad:
        return
    worst = min(bad, key=bad.__getitem__)
    evidence = (
        f"means scatter from batch to batch as those of {bad[worst]:.1f} independent samples would, in "
        f"{listed((worst,))}; the batch has {seen.samples}."
    )
    if seen.samples <= 16:
        yield Finding(
            "batch-too-small", "warning", tuple(bad), evidence,
            "training form and evaluation form see different noise; statistics of such batches are a poor guide.",
            'larger batches, evenly.SyncBatchNorm over processes, evenly.convert(model, norm="group"), or freeze.',
        )  # fmt: skip
    else:
        yield Finding(
            "batches-differ", "warning", tuple(bad), evidence,
            "batches are not drawn at random (sorted by class or source?), so the last ones rule the statistics.",
            "shuffle the data, then recalibrate.",
        )  # fmt: skip


def _effective(batches: list[Moments]) -> float | None:
    """How many independent samples a batch is worth: variance within over variance of the means, its median."""
    if len(batches) < 4:
        return None
    means = torch.stack([m.mean for m in batches])
    within = torch.stack([m.var for m in batches]).mean(0)
    between = means.var(0)
    living = within > 1e-10
    return float((within / between.clamp(min=1e-30))[living].median()) if bool(living.any()) else None


def gap(found: Gap, single: list[Trial], distances: Mapping[str, float]) -> Iterator[Finding]:
    """Evaluation form worse than training form, and the layer that does it."""
    if not found.unlike:
        return
    culprits = [t for t in single if t.restored >= 0.2 * found.lost]
    layers = tuple(t.layers[0] for t in culprits[:3]) or tuple(
        sorted(distances, key=distances.__getitem__, reverse=True)[:3]
    )
    lead = f"; {culprits[0].layers[0]} alone gives back {culprits[0].restored:.1f}" if culprits else (
        "; no layer alone gives back much" if single else ""
    )  # fmt: skip
    yield Finding(
        "train-eval-gap", "error", layers,
        f"{found.score} is {found.training:.1f} with batch statistics and {found.evaluation:.1f} with running "
        f"statistics{lead}.",
        "evaluation normalises with statistics that are not those of the data.",
        "the best trial below; --fix OUT, or diagnosis.fix(path), writes it.",
    )  # fmt: skip


def stale(distances: Mapping[str, float], named: set[str]) -> Iterator[Finding]:
    """Running statistics far from those of the data, or data far from what the model was trained on.

    Layers that are ``named`` already, with the reason, are left out.
    """
    far = {name: d for name, d in distances.items() if d > FAR and name not in named}
    if not far:
        return
    first = next(iter(distances))
    worst = max(far, key=far.__getitem__)
    evidence = f"running statistics of {listed((worst,))} are {far[worst]:.2g} standard deviations from the data's."
    if first in far:
        yield Finding(
            "shifted-data", "warning", tuple(far), evidence + f" The first norm, {listed((first,))}, sees it.",
            "either the data given is not like the data of training (scale, channel order, preprocessing, camera), "
            "or these statistics are stale.",
            "diagnose with training data: if this goes away the data shifted, and evenly.adapt(model, batches) follows "
            "it; if not, recalibrate.",
        )  # fmt: skip
    else:
        yield Finding(
            "stale-statistics", "warning", tuple(far), evidence,
            "these layers normalise with numbers of other data, of other weights, or of a bad batch.", RECALIBRATE,
        )  # fmt: skip
