"""Exact running statistics over data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evenly.core.moments import Moments
from evenly.nn.sync import everyone
from evenly.tools.batches import Forward, take
from evenly.tools.measure import Pool, apart
from evenly.tools.probe import Subject
from evenly.tools.sites import Site

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Move:
    """How far one layer's running statistics moved.

    Args:
        layer: its name in the model.
        shift: median over channels of ``|change of mean| / std``.
        ratio: median over channels of ``new var / old var``.
    """

    layer: str
    shift: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.layer or '(model)'}: mean moved {self.shift:.3g} std, var is {self.ratio:.3g} times what it was"


def recalibrate(
    model: Model,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    limit: int | None = None,
    until: float | None = None,
    process_group: Any = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """Set the running statistics of every batch norm to those of the data.

    ``running_mean = mean``, ``running_var = m2 / (count - 1)``, over every value that reaches the
    layer: batches are pooled by count (a small last batch weighs little, a batch of one is
    welcome), and so are several calls of one layer and several processes. Statistics are taken at
    the call that normalises, of what is normalised there, in the model's own ``eval()`` (dropout off)
    with batch statistics wherever its own ``train()`` uses them. Use it after weight averaging, in
    place of ``torch.optim.swa_utils.update_bn``, after quantizing, pruning or merging weights.

    A layer that no batch reaches, that is frozen, or that the model's own ``train()`` keeps in
    evaluation form, stays as it is; a batch with a NaN or infinity in a layer is left out there.
    On any error the model is as it was before.

    Args:
        model: changed in place: only the running statistics and ``num_batches_tracked`` (the
            calls measured, or a multiple of them where a counter stood higher).
        batches: an iterable of batches: a tensor, a tuple whose first item is the input, or a
            mapping of keywords.
        forward: ``forward(model, batch)`` for batches that need another call.
        limit: at most so many batches.
        until: stop by itself when three batches in turn move no layer's statistics by more than this
            many standard deviations (median over channels), such as 1e-3.
        process_group: processes to share with; None: all, where torch.distributed runs. Every
            one of them must call.
        say: takes lines of text, such as ``print``: progress, and how far each layer moved.

    Returns:
        ``model``.

    Raises:
        ValueError: no batches, no batch norm that keeps statistics and can be seen, or a layer in
            which every batch was left out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> norm = recalibrate(nn.BatchNorm1d(1), [x[:3], x[3:]], say=print)
        measured batch 1
        measured batch 2
        (model): mean moved 1.39 std, var is 4.67 times what it was
        >>> norm.running_mean, norm.running_var
        (tensor([3.]), tensor([4.6667]))
    """
    subject = Subject(model, forward)
    for move in set_statistics(subject.sites, measured(subject, batches, limit, process_group, say, until)):
        if say is not None:
            say(str(move))
    return model


def measured(
    subject: Subject,
    batches: Iterable[Any],
    limit: int | None = None,
    process_group: Any = None,
    say: Callable[[str], None] | None = None,
    until: float | None = None,
) -> Pool:
    """What is normalised in each norm over the data, by all processes; where it fails on one, it does on all."""
    whole = Pool()
    for pool in everyone(lambda: _moved(population(subject, batches, limit, until, say), "cpu"), process_group):
        whole.update(pool)
    if say is not None and whole.skipped:
        say(f"left out batches that are not finite: {whole.skipped}")
    if whole.lost:
        raise ValueError(
            f"every batch was left out in {whole.lost[0] or 'the model'}: what reaches it holds NaN or infinity. "
            "Look at the weights before it and at the data; nothing was changed."
        )
    return whole


def population(
    subject: Subject,
    batches: Iterable[Any],
    limit: int | None = None,
    until: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Pool:
    """The moments in every norm that ``train()`` would move, over the data.

    Raises:
        ValueError: there is no batch, or no such norm.
    """
    given = iter(take(batches, limit))
    first = next(given, None)
    if first is None:
        raise ValueError("batches is empty; a generator that was used up before gives nothing.")
    if not subject.looked:
        subject.look(first)
    if not subject.switching:
        if subject.unseen or not subject.sites:
            raise ValueError(nothing_to_measure(subject))
        if say is not None:
            say("the model's own train() keeps every batch norm in evaluation form (frozen): nothing is changed")
        return Pool()
    if subject.unseen and say is not None:
        say(f"left alone, as they compute by themselves and cannot be seen: {', '.join(sorted(subject.unseen))}")
    pool, still = Pool(), _Standstill(until)

    def each() -> Iterator[Any]:
        for number, batch in enumerate(chain([first], given), 1):
            yield batch
            if say is not None:
                say(f"measured batch {number}" + (f" of {limit}" if limit else ""))
            if still(subject, pool):
                if say is not None:
                    say(f"stopped after {number} batches: the last three moved no layer by more than {until:g} std")
                return

    subject.measure(each(), pool)
    return pool


def nothing_to_measure(subject: Subject) -> str:
    """Why no statistics can be measured, in one line."""
    if subject.unseen:
        return (
            f"{len(subject.unseen)} norms compute by themselves, so what they normalise cannot be seen: "
            f"{', '.join(sorted(subject.unseen)[:3])}. Give their class a forward that calls "
            "torch.nn.functional.batch_norm."
        )
    return "the model has no batch norm with running statistics, so there is nothing to measure."


class _Standstill:
    """Whether the last three batches moved no layer's statistics by more than ``until``."""

    def __init__(self, until: float | None) -> None:
        self._until, self._still = until, 0
        self._before: dict[str, Moments] = {}

    def __call__(self, subject: Subject, pool: Pool) -> bool:
        if self._until is None:
            return False
        moved = [
            float(apart(b.mean, b.var, m.mean, m.var, subject.sites[name].eps).median())
            for name, m in pool.moments.items()
            if (b := self._before.get(name)) is not None
        ]
        calm = bool(moved) and len(moved) == len(pool.moments) and max(moved) <= self._until
        self._still, self._before = self._still + 1 if calm else 0, dict(pool.moments)
        return self._still >= 3


def _moved(pool: Pool, device: str) -> Pool:
    moments = {n: Moments(m.count.to(device), m.mean.to(device), m.m2.to(device)) for n, m in pool.moments.items()}
    return Pool(moments, pool.calls, pool.skipped, pool.samples)


def set_statistics(
    known: Mapping[str, Site], pool: Pool, *, only: Collection[str] | None = None, blend: float = 1.0
) -> list[Move]:
    """Write measured statistics into the norms that are not frozen.

    Args:
        known: the model's sites; their tensors are changed in place.
        pool: what was measured, of this model.
        only: the sites to write; None: all.
        blend: the measured statistics' share; the rest is kept of the running ones.
    """
    moves = []
    times = passes(known, pool)
    for name, mean, var in settled(known, pool, only, blend):
        site = known[name]
        old_mean, old_var = site.read()
        site.write(mean, var)
        if blend == 1 and site.counter is not None:
            with torch.no_grad():
                site.counter.fill_(times * pool.calls[name])
        shift = ((mean - old_mean).abs() / (var + site.eps).sqrt()).median().item()
        moves.append(Move(name, shift, ((var + site.eps) / (old_var + site.eps)).median().item()))
    return moves


def settled(
    known: Mapping[str, Site], pool: Pool, only: Collection[str] | None = None, blend: float = 1.0
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, mean and variance that a blend of measured and running statistics gives each site."""
    for name, m in pool.moments.items():
        site = known[name]
        if (only is not None and name not in only) or site.frozen:
            continue
        mean, var = site.read()
        count, new_mean, unbiased, biased = (t.to(mean.device) for t in (m.count, m.mean, m.unbiased_var, m.var))
        has_var = count > (1 if site.unbiased else 0)
        new_var = torch.where(has_var, unbiased if site.unbiased else biased, var)
        new_mean = torch.where(count > 0, new_mean, mean)
        # Not `mean + blend * (new - mean)` where blend is 1: a NaN that is replaced must leave no trace.
        if blend != 1:
            new_mean, new_var = mean + blend * (new_mean - mean), var + blend * (new_var - var)
        yield name, new_mean, new_var


def passes(known: Mapping[str, Site], pool: Pool) -> int:
    """How many times over the measured batches the most trained layer was trained, at least once.

    Counters become this multiple of the calls measured: they agree between layers, and none falls
    back to that of a model which has hardly begun.
    """
    counters = {name: known[name].counter for name in pool.moments}
    return max((-(-int(c) // pool.calls[name]) for name, c in counters.items() if c is not None), default=1) or 1
