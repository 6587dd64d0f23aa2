"""Rules over what was seen of a model at work: each yields findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.core.moments import Moments
from evenly.nn.sync import gathered
from evenly.tools import probe
from evenly.tools.finding import Finding, Gap, Trial, listed
from evenly.tools.measure import Pool
from evenly.tools.probe import Subject
from evenly.tools.rules import RECALIBRATE
from evenly.tools.sites import instance_norms, modules

FAR = 0.5  # standard deviations: a layer's running statistics are elsewhere


def attributes(subject: Subject) -> Iterator[Finding]:
    """What the modules say themselves: batches left out, statistics not kept."""
    skipped = {
        name: int(count)
        for name, norm, _ in modules(subject.model)
        if (count := getattr(norm, "skipped_batches", None)) is not None and int(count)
    }
    if skipped:
        yield Finding(
            "skipped-batches", "warning", tuple(skipped),
            f"{max(skipped.values())} batches with NaN or infinity were left out of the running statistics.",
            "the statistics are sound, but something before these layers overflows or divides by zero.",
            "look at those batches; under mixed precision, at the loss scale.",
        )  # fmt: skip
    untracked = [n for n, m, _ in modules(subject.model) if isinstance(m, _BatchNorm) and m.running_mean is None]
    if untracked:
        yield Finding(
            "untracked", "warning", tuple(untracked), "these layers keep no running statistics.",
            "in evaluation, too, a sample's output depends on the others in its batch.",
            "track_running_stats=True, then recalibrate.",
        )  # fmt: skip


def seen_in_use(subject: Subject) -> Iterator[Finding]:
    """What the calls themselves show: statistics that training leaves alone, instance norms that keep some."""
    off = [n for n in subject.training.untracked if subject.evaluation.used.get(n) == "running"]
    if off:
        yield Finding(
            "tracking-off", "error", tuple(off),
            "track_running_stats is off, so training no longer moves the running statistics; they are still there, and "
            "evaluation uses them.",
            "evaluation normalises with the statistics of an earlier training.",
            "leave track_running_stats on (to freeze, use evenly.freeze), or set running_mean and running_var to None; "
            "for this file, " + RECALIBRATE,
        )  # fmt: skip
    counting = [
        n for n in subject.switching
        if (m := subject.sites[n].module) is not None and (p := list(m.parameters(recurse=False)))
        and not any(q.requires_grad for q in p)
    ]  # fmt: skip
    if counting and any(p.requires_grad for p in subject.model.parameters()):
        yield Finding(
            "half-frozen", "warning", tuple(counting),
            "weight and bias need no gradient, but train() still uses batch statistics and moves the running ones.",
            "requires_grad=False does not freeze a batch norm: its statistics follow the new data.",
            "evenly.freeze(model); for this file, " + RECALIBRATE,
        )  # fmt: skip
    instance = tuple(instance_norms(subject.model))
    if instance and subject.evaluation.instance:
        yield Finding(
            "instance-running", "warning", instance,
            "these instance norms keep running statistics, which eval() uses; train() takes each sample by itself.",
            "evaluation is another network than the one that was trained (known from image translation).",
            "track_running_stats=False on these layers: evaluation is then as training.",
        )  # fmt: skip


def unsynchronised(subject: Subject) -> Iterator[Finding]:
    """Running statistics that differ between processes."""
    names = [name for name, site in subject.sites.items() if site.registered]
    parts = [torch.cat(subject.sites[name].read()).cpu() for name in names]
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


def dropout(noisy: Pool, clean: Pool) -> Iterator[Finding]:
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


def small_batches(by_batch: Mapping[str, list[Moments]], samples: int) -> Iterator[Finding]:
    """Means that scatter from batch to batch, measured as the size of batch that would explain it."""
    sizes = {name: size for name, batches in by_batch.items() if (size := _effective(batches)) is not None}
    # Independent samples are worth at least as many as they are.
    bad = {name: size for name, size in sizes.items() if size < (8 if samples <= 32 else samples / 4)}
    if not bad:
        return
    worst = min(bad, key=bad.__getitem__)
    evidence = (
        f"means scatter from batch to batch as those of {bad[worst]:.1f} independent samples would, in "
        f"{listed((worst,))}; the batch has {samples}."
    )
    if samples <= 16:
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
    """Evaluation form worse than training form (or, without labels, apart from it), and the layer that does it."""
    if not found.unlike:
        return
    culprits = [t for t in single if t.restored >= 0.2 * found.lost]
    layers = tuple(t.layers[0] for t in culprits[:3]) or tuple(
        sorted(distances, key=distances.__getitem__, reverse=True)[:3]
    )
    lead = f"; {culprits[0].layers[0] or 'the model'} alone gives back {culprits[0].restored:.1f}" if culprits else (
        "; no layer alone gives back much" if single else ""
    )  # fmt: skip
    evidence = (
        f"{found.score} is {found.training:.1f} with batch statistics and {found.evaluation:.1f} with running "
        f"statistics{lead}."
    )
    if found.judges:
        yield Finding(
            "train-eval-gap", "error", layers, evidence,
            "evaluation normalises with statistics that are not those of the data.",
            "the trials below; --fix OUT, or diagnosis.fix(path), writes the one that proves better.",
        )  # fmt: skip
    else:
        yield Finding(
            "forms-disagree", "warning", layers, evidence,
            "one form is wrong, or training saw other data (augmentation): nothing tells without labels or loss.",
            "give labels with the batches, or loss=lambda output, batch: … (--loss).",
        )  # fmt: skip


def not_the_norms(found: Gap, chance: float) -> Iterator[Finding]:
    """Both forms no better than guessing: the fault is elsewhere."""
    if found.score != "accuracy" or found.unlike or max(found.training, found.evaluation) > 1.5 * chance:
        return
    yield Finding(
        "not-the-norms", "warning", (),
        f"accuracy is {found.evaluation:.1f} with running statistics and {found.training:.1f} with batch statistics; "
        f"always the most frequent class gives {chance:.1f}.",
        "both forms guess, so no statistic brings this back.",
        "look at the weights (were they loaded?), the order of classes and labels, and the preprocessing.",
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
