"""Exact running statistics over data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from evenly.core.moments import Moments
from evenly.nn.sync import everyone
from evenly.tools import measure, walk
from evenly.tools.batches import Forward
from evenly.tools.freeze import is_frozen

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
    process_group: Any = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """Set the running statistics of every batch norm to those of the data.

    ``running_mean = mean``, ``running_var = m2 / (count - 1)``, over every value that reaches the
    layer: batches are pooled by count (a small last batch weighs little, a batch of one is
    welcome), and so are several calls of one layer and several processes. Norms run as in
    training, dropout is off. Use it after weight averaging, in place of
    ``torch.optim.swa_utils.update_bn``.

    A layer that no batch reaches, or that is frozen, stays as it is; a batch with a NaN or
    infinity in a layer is left out there. On any error the model is as it was before.

    Args:
        model: changed in place: only the running statistics and ``num_batches_tracked`` (the
            calls measured, or a multiple of them where a counter stood higher).
        batches: an iterable of batches: a tensor, a tuple whose first item is the input, or a
            mapping of keywords.
        forward: ``forward(model, batch)`` for batches that need another call.
        limit: at most so many batches.
        process_group: processes to share with; None: all, where torch.distributed runs. Every
            one of them must call.
        say: takes lines of text, such as ``print``: progress, and how far each layer moved.

    Returns:
        ``model``.

    Raises:
        ValueError: no batches, or no batch norm that keeps statistics.

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
    for move in set_statistics(model, measured(model, batches, forward, limit, process_group, say)):
        if say is not None:
            say(str(move))
    return model


def measured(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    limit: int | None = None,
    process_group: Any = None,
    say: Callable[[str], None] | None = None,
) -> measure.Pool:
    """`evenly.tools.measure.population`, over all processes; where it fails on one, it does on all."""
    pools = everyone(
        lambda: _moved(measure.population(model, batches, forward=forward, limit=limit, say=say), "cpu"), process_group
    )
    pool = _merged(pools)
    if say is not None and pool.skipped:
        say(f"left out batches that are not finite: {pool.skipped}")
    norms = walk.tracking(model)
    return _moved(pool, {name: norms[name].get_buffer("running_mean").device for name in pool.moments})


def _moved(pool: measure.Pool, device: str | dict[str, torch.device]) -> measure.Pool:
    """The pool with its moments on one device, or each on its layer's."""
    at = dict.fromkeys(pool.moments, device) if isinstance(device, str) else device
    moments = {
        name: Moments(m.count.to(at[name]), m.mean.to(at[name]), m.m2.to(at[name])) for name, m in pool.moments.items()
    }
    return measure.Pool(moments, pool.calls, pool.skipped)


def _merged(pools: list[measure.Pool]) -> measure.Pool:
    """The union of the processes' pools, merged in rank order; a process may lack a layer."""
    whole = measure.Pool()
    for pool in pools:
        for name, moments in pool.moments.items():
            before = whole.moments.get(name)
            whole.moments[name] = moments if before is None else before.merge(moments)
            whole.calls[name] = whole.calls.get(name, 0) + pool.calls[name]
        for name, number in pool.skipped.items():
            whole.skipped[name] = whole.skipped.get(name, 0) + number
    return whole


def set_statistics(
    model: nn.Module, pool: measure.Pool, *, only: Collection[str] | None = None, blend: float = 1.0
) -> list[Move]:
    """Write measured statistics into the norms that are not frozen.

    Args:
        model: changed in place.
        pool: what was measured, of this model.
        only: the layers to write; None: all.
        blend: the measured statistics' share; the rest is kept of the running ones.
    """
    moves = []
    norms = walk.tracking(model)
    passes = _passes(norms, pool)
    for name, moments in pool.moments.items():
        norm = norms[name]
        if (only is not None and name not in only) or is_frozen(norm):
            continue
        moves.append(_set(name, norm, moments, blend))
        counter = norm._buffers.get("num_batches_tracked")
        if blend == 1 and counter is not None:
            counter.fill_(passes * pool.calls[name])
    return moves


def _passes(norms: Mapping[str, nn.Module], pool: measure.Pool) -> int:
    """How many times over the measured batches the most trained layer was trained, at least once.

    Counters become this multiple of the calls measured: they agree between layers, and none falls
    back to that of a model which has hardly begun.
    """
    counters = {name: norms[name]._buffers.get("num_batches_tracked") for name in pool.moments}
    return max((-(-int(c) // pool.calls[name]) for name, c in counters.items() if c is not None), default=1) or 1


def _set(name: str, norm: nn.Module, moments: Moments, blend: float) -> Move:
    mean, var = measure.running(norm)
    unbiased = getattr(norm, "unbiased", True)
    has_var = moments.count > (1 if unbiased else 0)
    new_var = torch.where(has_var, moments.unbiased_var if unbiased else moments.var, var)
    new_mean = torch.where(moments.count > 0, moments.mean, mean)
    # Not `mean + blend * (new - mean)` where blend is 1: a NaN that is replaced must leave no trace.
    if blend != 1:
        new_mean, new_var = mean + blend * (new_mean - mean), var + blend * (new_var - var)
    measure.write(norm, new_mean, new_var)
    eps = getattr(norm, "eps", 1e-5)
    shift = ((new_mean - mean).abs() / (new_var + eps).sqrt()).median().item()
    return Move(name, shift, ((new_var + eps) / (var + eps)).median().item())
