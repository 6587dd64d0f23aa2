"""The first norm's input, sample by sample: whether the data falls into two groups, and what a sample is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenly.tools.batches import samples_of
from evenly.tools.finding import Finding
from evenly.tools.observe import Call
from evenly.tools.probe import Subject

_SPLIT = 0.85  # of the variance between two groups: 0.64 is a normal distribution cut in half, 0.75 a uniform one
_SHARE = 0.1  # of the samples that the smaller group has at least


@dataclass(frozen=True)
class Samples:
    """What the first norm sees of each sample.

    Args:
        name: of the norm.
        means: shape ``(samples, channels)``.
        vars: within each sample; 0 where a sample has one place.
        places: of a sample.
        sizes: samples in each batch.
    """

    name: str
    means: Tensor
    vars: Tensor
    places: int
    sizes: tuple[int, ...]


def samples(subject: Subject, batches: Sequence[Any]) -> Samples | None:
    """The first norm's input by sample; None where its first axis is not the samples'."""
    means: list[Tensor] = []
    variances: list[Tensor] = []
    sizes = [samples_of(batch) for batch in batches]
    state: dict[str, Any] = {"batch": -1, "name": None, "places": 0}

    def see(call: Call) -> None:
        if state["done"] or state["name"] not in (None, call.site.name):
            return
        state["done"], state["name"] = True, call.site.name
        size = sizes[state["batch"]]
        x = call.x.detach().movedim(call.channel, -1).flatten(1, -2) if call.x.ndim > 2 else call.x.detach()[:, None]
        if call.channel == 0 or not size or x.shape[0] % size:
            state["name"] = ""
            return
        x = x.reshape(size, -1, x.shape[-1]).float()
        var, mean = torch.var_mean(x, 1, correction=0)
        means.append(mean.double().cpu())
        variances.append(var.double().cpu())
        state["places"] = x.shape[1]

    def each() -> Iterator[Any]:
        for number, batch in enumerate(batches):
            state.update(batch=number, done=False)
            yield batch

    subject.run(each(), see=see, keep=False)
    if not state["name"] and state["name"] != "":
        return None
    if len(means) != len(batches) or not means:
        return None
    return Samples(state["name"], torch.cat(means), torch.cat(variances), state["places"], tuple(sizes))


@dataclass(frozen=True)
class Groups:
    """Two groups of samples.

    Args:
        of: the group of each sample, 0 or 1.
        apart: distance of the groups, in standard deviations within them.
        pure: share of batches that hold one group only.
    """

    of: Tensor
    apart: float
    pure: float


def groups(seen: Samples) -> Groups | None:
    """The two groups that samples fall into, if they clearly do."""
    values = torch.cat((seen.means, seen.vars.sqrt()), 1)
    good = torch.isfinite(values).all(1)
    if int(good.sum()) < 24 or not bool(good.all()):
        return None
    # As far as they are apart in units of the norm's own: no channel's noise is blown up.
    total = (seen.vars.mean(0) + seen.means.var(0)).sqrt().clamp(min=1e-12)
    values = (values - values.mean(0)) / torch.cat((total, total))
    if not float(values.std()) > 0:
        return None
    along = torch.linalg.svd(values, full_matrices=False).Vh[0]
    line = values @ along
    ordered, order = line.sort()
    number = len(line)
    left = torch.arange(1, number, dtype=torch.double)
    below = ordered.cumsum(0)[:-1]
    between = (below / left - (ordered.sum() - below) / (number - left)).square() * left * (number - left) / number**2
    allowed = (left >= _SHARE * number) & (left <= (1 - _SHARE) * number)
    ratio = torch.where(allowed, between, 0) / line.var(correction=0)
    cut = int(ratio.argmax())
    if float(ratio[cut]) < _SPLIT or float(line.std()) < 0.1:
        return None
    of = torch.zeros(number, dtype=torch.long)
    of[order[cut + 1 :]] = 1
    within = float((line.var(correction=0) * (1 - ratio[cut])).clamp(min=1e-12).sqrt())
    distance = float(line[of == 1].mean() - line[of == 0].mean()) / within
    shares = [float(part.double().mean()) for part in of.split(list(seen.sizes))]
    return Groups(of, distance, sum(s in (0.0, 1.0) for s in shares) / len(shares))


def named(found: Groups | None, seen: Samples | None) -> Iterator[Finding]:
    """Data of two kinds: one set of statistics is of neither."""
    if found is None or seen is None:
        return
    second = int(found.of.sum())
    alternate = found.pure == 1.0 and len(seen.sizes) > 3
    yield Finding(
        "two-groups", "warning" if alternate else "note", (seen.name,),
        f"the {len(found.of)} samples fall into two groups ({len(found.of) - second} and {second}), {found.apart:.1f} "
        f"standard deviations apart at {seen.name or 'the model'}, the first norm"
        + ("; each batch holds one group only." if alternate else "."),
        "in training form each batch is normalised by its own group; running statistics are of the mixture, in which "
        "neither is normalised." if alternate else "running statistics are of the mixture; a file is scored for each "
        "group, too.",
        "mix both in every batch and train on, or keep statistics for each domain; recalibrate with both, never with "
        "one.",
    )  # fmt: skip
