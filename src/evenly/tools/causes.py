"""Causes behind statistics that do not fit the data, each told by its number at the first norm.

What reaches the first norm does not depend on any running statistic, so there the two can be
compared as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly.core.moments import Moments
from evenly.tools.batches import mapped, parts_of, samples_of
from evenly.tools.calls import with_input
from evenly.tools.finding import Finding
from evenly.tools.labels import tensor_of
from evenly.tools.measure import Pool, distance
from evenly.tools.observe import Call
from evenly.tools.probe import Subject
from evenly.tools.recalibrate import settled
from evenly.tools.scores import Score
from evenly.tools.sites import Site

_ALONE = 160  # samples that are run one by one
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Change(NamedTuple):
    """A change of the input, the name it has in a sentence, and how to make it."""

    said: str
    code: str
    of: Callable[[Tensor], Tensor]


def _per_channel(x: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, *(1,) * (x.ndim - 2))


CHANGES = (
    Change("multiplied by 255", "x * 255", lambda x: x * 255),
    Change("divided by 255", "x / 255", lambda x: x / 255),
    Change("taken from 0…1 to −1…1", "2 * x - 1", lambda x: 2 * x - 1),
    Change("taken from −1…1 to 0…1", "(x + 1) / 2", lambda x: (x + 1) / 2),
    Change("inverted (1 − x)", "1 - x", lambda x: 1 - x),
    Change("divided by 255 and taken to −1…1", "x / 127.5 - 1", lambda x: x / 127.5 - 1),
)
_OF_COLOR = (
    Change("with its channels in reverse order (BGR for RGB)", "x.flip(1)", lambda x: x.flip(1)),
    Change("normalised by ImageNet's mean and standard deviation", "(x - mean) / std",
           lambda x: (x - _per_channel(x, _IMAGENET[0])) / _per_channel(x, _IMAGENET[1])),
    Change("with ImageNet's normalisation undone", "x * std + mean",
           lambda x: x * _per_channel(x, _IMAGENET[1]) + _per_channel(x, _IMAGENET[0])),
    Change("divided by 255 and normalised by ImageNet's mean and standard deviation", "(x / 255 - mean) / std",
           lambda x: (x / 255 - _per_channel(x, _IMAGENET[0])) / _per_channel(x, _IMAGENET[1])),
)  # fmt: skip


def inputs(
    subject: Subject, batches: Sequence[Any], first: str, now: float, as_good: Callable[[list[Any]], bool] | None
) -> Iterator[Finding]:
    """A change of the input after which the first norm's running statistics fit it.

    Args:
        subject: the model.
        batches: as given.
        first: the first norm.
        now: its distance from them.
        as_good: whether the model evaluates batches so changed as well as in training form; statistics that
            were spoiled by other data fit that data, but do not evaluate well. None: nothing tells.
    """
    if not now > 0.3:
        return
    tried = []
    for change in CHANGES + (_OF_COLOR if _of_color(batches[0]) else ()):
        changed = [with_input(batch, change.of) for batch in batches]
        tried.append((_first_distance(subject, changed, first), change))
    far, change = min(tried, key=lambda pair: pair[0])
    if far > 0.3 * now or far > 0.35:
        return
    if as_good is not None and not as_good([with_input(batch, change.of) for batch in batches]):
        return
    yield Finding(
        "input-changed", "error" if as_good is not None else "warning", (first,),
        f"the first norm's running statistics are {now:.2g} standard deviations from this data, and {far:.2g} with the "
        f"input {change.said}.",
        "the data given is not prepared as it was in training; the norms and their statistics are sound."
        if as_good is not None
        else "either the data is not prepared as in training, or such data spoiled the statistics.",
        f"prepare the input as in training: {change.code}. Do not recalibrate.",
    )  # fmt: skip


def _of_color(batch: Any) -> bool:
    found: list[Tensor] = []
    with_input(batch, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return bool(found) and found[0].ndim == 4 and found[0].shape[1] == 3


def _first_distance(subject: Subject, batches: Sequence[Any], first: str) -> float:
    pool: list[Moments] = []

    def see(call: Call) -> None:
        if call.site.name == first:
            pool.append(call.moments())

    try:
        subject.run(batches, see=see, keep=False)
    except (RuntimeError, ValueError, IndexError):  # this change does not fit this input
        return float("inf")
    apart = distance(subject.sites[first], Moments.of(pool))
    return apart.nan_to_num(torch.inf).median().item()


def file_scale(site: Site, moments: Moments, name: str) -> Iterator[Finding]:
    """Mean and variance off by one and the same factor: a scale factor of the file's was not divided out."""
    mean, var = site.read()
    m = Moments(*(t.to(mean.device) for t in (moments.count, moments.mean, moments.m2)))
    good = (m.var > 1e-8) & (var > 0)
    if int(good.sum()) < 4:
        return
    by_var = (var / m.var)[good].log()
    large = good & (m.mean.abs() > 0.2 * m.var.sqrt())
    by_mean = (mean / m.mean)[large].abs().log() if bool(large.any()) else by_var[:0]
    factor = by_var.median()
    if by_var.std() > 0.15 or factor.abs() < 0.4 or len(by_mean) < 2 or (by_mean.median() - factor).abs() > 0.1:
        return
    yield Finding(
        "scale-factor", "error", (name,),
        f"running mean and running variance of {name or 'the model'} are both {float(factor.exp()):.4g} times those of "
        "the data, in every channel alike.",
        "a converted file holds sums (Caffe's blobs with their scale factor), not means.",
        "divide running_mean and running_var by the scale factor that the file has beside them.",
    )  # fmt: skip


def constant_taken(site: Site, moments: Moments, name: str) -> Iterator[Finding]:
    """One constant added to every variance, or taken from it: eps, stored in the file or not."""
    _, var = site.read()
    apart = var - moments.unbiased_var.to(var.device)
    constant = apart.median()
    small = moments.var.to(var.device).median()
    scatter = (apart - constant).abs().median()
    spread = moments.var.to(var.device)
    spread = (spread - spread.median()).abs().median()
    # Where variances are all alike (a new layer's are 1), every difference looks constant.
    clear = bool(torch.isfinite(var).all()) and scatter < 0.2 * spread and constant.abs() > 10 * scatter
    if len(var) < 4 or not clear or constant.abs() < 0.2 * small or constant.abs() < 5e-6:
        return
    verb = "added to" if constant > 0 else "taken from"
    yield Finding(
        "constant-in-variance", "warning", (name,),
        f"running variances of {name or 'the model'} are the data's with {float(constant.abs()):.3g} {verb} each.",
        "a file of another library keeps variance and eps in one number, or takes eps out twice.",
        "undo it when converting, or give the layer the eps that makes the sum right.",
    )  # fmt: skip


def by_itself(subject: Subject, batches: Sequence[Any], score: Score, pool: Pool) -> Iterator[Finding]:
    """Each sample with its own statistics, against the best that statistics of all can do."""
    few: list[Any] = []
    while len(few) < len(batches) and sum(map(samples_of, few)) < _ALONE:
        few.append(batches[len(few)])
    every = {name: (mean, var) for name, mean, var in settled(subject.sites, pool)}
    single = [subject.outputs(parts_of(batch, 1), using=None) for batch in few]
    alone = [torch.cat([tensor_of(part) for part in parts]) for parts in single]
    own, pooled, now = (
        score.values(o, few) for o in (alone, subject.outputs(few, statistics=every), subject.outputs(few))
    )
    better, than_now = score.better(pooled, own), score.better(now, own)
    if better.low <= 0 or than_now.low <= 0 or (score.unit == "points" and min(better.mean, than_now.mean) < 2):
        return
    yield Finding(
        "batches-of-one", "error", (),
        f"{score.name} is {score.shown(own):.1f} where each sample is normalised by itself, {score.shown(now):.1f} in "
        f"evaluation, and {score.shown(pooled):.1f} with exact statistics of all the data ({better.number} samples).",
        "the model was trained on batches of one (or of samples that belong together), as an instance norm network; "
        "no running statistics do what its training did.",
        "evaluate as trained (batches of one in training form, or instance norm), or train on with larger batches or "
        "group norm; recalibrating does not restore this.",
    )  # fmt: skip


def mixture(site: Site, moments: Moments, name: str) -> Iterator[Finding]:
    """A running mean that lies elsewhere, beside a variance that fits: an average over two kinds of batches."""
    mean, var = site.read()
    std = moments.var.to(mean.device).sqrt()
    good = (std > 1e-6) & (var > 0)
    if int(good.sum()) < 4:
        return
    away = ((mean - moments.mean.to(mean.device)).abs() / std)[good].median()
    wider = (var[good].sqrt() / std[good]).log().abs().median()
    if away < 0.15 or wider > 0.15:
        return
    yield Finding(
        "two-populations", "note", (name,),
        f"the running mean of {name or 'the model'}, the first norm, is {float(away):.2f} standard deviations from "
        f"this data's, while its running standard deviation fits (to {100 * float(wider):.0f} %).",
        "so look statistics of batches of two kinds in turn (two domains), or last batches of another kind: a file "
        "mended on one kind is for that kind.",
        "give batches of every kind that the model shall serve; the file is then scored for each.",
    )  # fmt: skip


def finite(batches: Sequence[Any]) -> bool:
    """Whether every number of the input is finite."""
    bad: list[bool] = []
    for batch in batches:
        mapped(batch, lambda t: bad.append(bool(t.is_floating_point() and not torch.isfinite(t).all())) or t)  # type: ignore[func-returns-value]
    return not any(bad)
