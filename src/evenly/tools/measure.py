"""What the inputs of batch norms look like over data: moments by layer, pooled by count.

One mechanism serves every tool. Before a norm is called a hook measures its input; a norm that
shall use the statistics of its batch gets them written into its running statistics and runs in
evaluation form. So nothing depends on a norm's class, no counter moves, a batch of one value per
channel raises no error, and the caller puts the buffers back with `evenly.tools.walk.restored`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenly.core.moments import Moments
from evenly.nn.batch import moments
from evenly.tools import walk
from evenly.tools.batches import Forward, feed, take

Observe = Callable[[str, nn.Module, Tensor, Moments], None]


@dataclass
class Pool:
    """Moments by layer, merged over calls; layers in the order in which they were first called.

    Args:
        moments: by layer, float64, each field of shape ``(channels,)``.
        calls: how many calls entered, by layer.
        skipped: how many were left out because a statistic was not finite, by layer.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, moments: Moments) -> None:
        """Merge one call's moments, unless they hold a NaN or infinity."""
        if not bool(torch.isfinite(moments.mean).all() & torch.isfinite(moments.m2).all()):
            self.skipped[name] = self.skipped.get(name, 0) + 1
            return
        before = self.moments.get(name)
        self.moments[name] = moments if before is None else before.merge(moments)
        self.calls[name] = self.calls.get(name, 0) + 1


def moments_of(x: Tensor, channel: int = 1, mask: Tensor | None = None) -> Moments:
    """Moments of each channel of ``x``; float64 fields of shape ``(channels,)``.

    Args:
        x: shape ``(N, C, *)`` (channels on axis ``channel``).
        channel: the channel axis.
        mask: which positions count, or how much, as the layers take it.
    """
    m = moments(x, channel, mask)
    return Moments(*(field.double().reshape(-1) for field in (m.count, m.mean, m.m2)))


@contextmanager
def batch_statistics(
    norms: Mapping[str, nn.Module], observe: Observe | None = None, using: Collection[str] | None = None
) -> Iterator[None]:
    """While it lasts, norms normalise by the statistics of their batch, and ``observe`` sees them.

    Args:
        norms: batch norms with running statistics, by name; they run in evaluation form, and
            their running statistics are overwritten.
        observe: called as ``observe(name, norm, x, moments)`` before each call of a norm.
        using: the norms that use their batch's statistics; the others keep their running ones.
            None: all.
    """
    with ExitStack() as hooks:
        for name, norm in norms.items():
            norm.training = False
            use = using is None or name in using
            hook = _hook(name, observe, use)
            hooks.callback(norm.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _hook(name: str, observe: Observe | None, use: bool) -> Callable[..., None]:
    last: list[Moments] = []

    def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        norm.training = False
        if not use and observe is None:
            return
        x, mask = call_of(norm, args, kwargs)
        if not x.numel():
            return
        moments = moments_of(x, getattr(norm, "channel", 1), mask)
        if observe is not None:
            observe(name, norm, x, moments)
        if use:
            # One value has no variance: the last batch that had one speaks for it.
            if bool((moments.count > 1).any()):
                last[:] = [moments]
            elif last:
                moments = last[0]
            write(norm, moments.mean, moments.var)

    return hook


def call_of(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Input and mask of a norm's call; only evenly's layers take a mask."""
    x = args[0] if args else next(iter(kwargs.values()))
    mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
    return x, mask if type(norm).__module__.startswith("evenly.") else None


def running(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A norm's running mean and variance in float64, shapes ``(channels,)``."""
    mean, var = norm._buffers["running_mean"], norm._buffers["running_var"]
    assert mean is not None
    assert var is not None
    return mean.double(), var.double()


def write(norm: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Set a norm's running statistics; shapes ``(channels,)``."""
    with torch.no_grad():
        for name, value in (("running_mean", mean), ("running_var", var)):
            buffer = norm._buffers[name]
            assert buffer is not None
            buffer.copy_(value)


def population(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    limit: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Pool:
    """The moments of every batch norm's input over the data, the model left as it was.

    Norms use their batch's statistics, as in training; dropout is off. A layer that is called
    several times pools all calls.

    Args:
        model: any model with batch norms that keep running statistics.
        batches: an iterable of batches (see `evenly.tools.batches.feed`).
        forward: ``forward(model, batch)``, where the rule does not fit.
        limit: at most so many batches.
        say: where progress goes, line by line.

    Raises:
        ValueError: there is no batch, or no batch norm.
    """
    norms = walk.tracking(model)
    if not norms:
        raise ValueError("the model has no batch norm with running statistics, so there is nothing to measure.")
    pool, number = Pool(), 0
    with walk.restored(model), torch.no_grad():
        model.eval()
        with batch_statistics(norms, lambda name, norm, x, moments: pool.add(name, moments)):
            for batch in take(batches, limit):
                feed(model, batch, forward)
                number += 1
                if say is not None:
                    say(f"measured batch {number}" + (f" of {limit}" if limit else ""))
    if not number:
        raise ValueError("batches is empty; a generator that was used up before gives nothing.")
    return pool


def distance(norm: nn.Module, moments: Moments) -> Tensor:
    """How far running statistics are from measured ones, by channel.

    ``|running_mean - mean| / std + |log(running_std / std)|``, each std with the norm's eps, so
    that a channel that is constant in both does not count.
    """
    eps = getattr(norm, "eps", 1e-5)
    mean, var = running(norm)
    std, running_std = (moments.var + eps).sqrt(), (var.clamp(min=0) + eps).sqrt()
    apart: Tensor = (mean - moments.mean).abs() / std + (running_std / std).log().abs()
    return apart
