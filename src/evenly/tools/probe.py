"""A model seen at work: its norms in training form and in evaluation form, nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenly.core.moments import Moments
from evenly.tools import measure, walk
from evenly.tools.batches import Forward, feed, mapped
from evenly.tools.scores import tensor_of


@dataclass(frozen=True)
class Subject:
    """The model under examination and how to run it."""

    model: nn.Module
    forward: Forward | None = None

    @property
    def norms(self) -> dict[str, nn.Module]:
        """Its batch norms with running statistics."""
        return walk.tracking(self.model)

    def outputs(
        self,
        batches: Sequence[Any],
        *,
        using: Collection[str] | None = (),
        observe: measure.Observe | None = None,
        dropout: bool = False,
        tick: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """The outputs for all batches; the model is as before afterwards.

        Args:
            batches: what to run.
            using: norms that use their batch's statistics (None: all); the others their running ones.
            observe: sees each norm's input.
            dropout: whether all but the norms is in training mode.
            tick: called with the number of each batch done.
        """
        outputs = []
        with walk.restored(self.model), torch.no_grad():
            self.model.train(dropout)
            for _, norm in walk.norms(self.model):
                norm.training = False
            with measure.batch_statistics(self.norms, observe, using):
                for number, batch in enumerate(batches, 1):
                    output = feed(self.model, batch, self.forward)
                    outputs.append(mapped(output, lambda t: t.detach().cpu()))
                    if tick is not None:
                        tick(number)
        return outputs


@dataclass
class Observed:
    """What was seen of the norms' inputs in training form, dropout off.

    Args:
        pool: over the batches to fit on.
        by_batch: the moments of each of those batches, by layer, in order.
        calls: how often a layer is called in one forward.
        samples: of the first batch.
    """

    pool: measure.Pool = field(default_factory=measure.Pool)
    by_batch: dict[str, list[Moments]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    def add(self, name: str, norm: nn.Module, x: Tensor, moments: Moments) -> None:
        """One call of a norm."""
        self.pool.add(name, moments)
        self.by_batch.setdefault(name, []).append(moments)


def observe(subject: Subject, batches: Sequence[Any], tick: Callable[[int], None] | None = None) -> Observed:
    """Run in training form and keep the moments of each norm's input."""
    seen = Observed()
    subject.outputs(batches, using=None, observe=seen.add, tick=tick)
    seen.calls = {name: max(1, len(moments) // len(batches)) for name, moments in seen.by_batch.items()}
    return seen


def with_dropout(subject: Subject, batches: Sequence[Any]) -> measure.Pool:
    """The moments of each norm's input with dropout on."""
    pool = measure.Pool()
    subject.outputs(batches, using=None, observe=lambda name, norm, x, m: pool.add(name, m), dropout=True)
    return pool


def counted_twice(subject: Subject, batch: Any) -> dict[str, tuple[int, int]]:
    """Per layer, by how much one training step raises its counter: in forward, and again in backward.

    Only layers whose counter moves in backward are named. Empty, too, where the output needs no
    gradient or the step cannot be run.
    """
    counters = {
        n: c for n, norm in subject.norms.items() if (c := norm._buffers.get("num_batches_tracked")) is not None
    }
    with walk.restored(subject.model), torch.enable_grad():
        subject.model.train()
        before = {name: int(c) for name, c in counters.items()}
        try:
            output = tensor_of(feed(subject.model, batch, subject.forward))
            between = {name: int(c) for name, c in counters.items()}
            if not output.requires_grad:
                return {}
            output.float().square().mean().backward()
        except (RuntimeError, TypeError, ValueError):
            return {}
        moved = {n: (between[n] - before[n], int(c) - between[n]) for n, c in counters.items()}
    return {name: steps for name, steps in moved.items() if steps[1] > 0}


def one_element(subject: Subject, batch: Any) -> dict[str, str]:
    """The norms whose statistics are over one element, with the shape of their input.

    torch refuses some of these in training; the error is swallowed here, the finding says it better.
    """
    found: dict[str, str] = {}
    training_only: set[str] = set()

    def hook(name: str) -> Callable[..., None]:
        def see(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, mask = measure.call_of(norm, args, kwargs)
            if mask is None and x.numel() and _count(norm, x) == 1:
                found[name] = str(tuple(x.shape))
                if walk.is_batch_norm(norm):
                    training_only.add(name)

        return see

    handles = [n.register_forward_pre_hook(hook(name), with_kwargs=True) for name, n in walk.norms(subject.model)]
    try:
        subject.outputs([batch])
    except ValueError:
        if not found:
            raise
    finally:
        for handle in handles:
            handle.remove()
    return found


def _count(norm: nn.Module, x: Tensor) -> int:
    """Over how many elements one mean of ``norm`` is taken, for input ``x``."""
    if isinstance(norm, nn.LayerNorm):
        return int(torch.Size(norm.normalized_shape).numel())
    if isinstance(norm, nn.RMSNorm):
        return 2  # a mean of squares over one element still is a norm
    if isinstance(norm, nn.GroupNorm):
        return x[0].numel() // norm.num_groups
    channel = getattr(norm, "channel", 1)
    if walk.is_batch_norm(norm):
        return x.numel() // max(x.shape[channel], 1)
    return int(torch.Size(x.shape[2:]).numel()) if x.ndim > 2 else 1


def producers(subject: Subject, batch: Any) -> dict[str, tuple[str, nn.Module]]:
    """The convolution or linear layer with a bias whose output alone is a norm's input, by norm."""
    made: dict[int, tuple[str, nn.Module, Tensor]] = {}
    found: dict[str, tuple[str, nn.Module]] = {}
    seen: set[str] = set()

    def after(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            made[id(output)] = (name, module, output)  # holding it keeps its id its own

        return keep

    def watch(name: str, norm: nn.Module, x: Tensor, moments: Moments) -> None:
        source = made.get(id(x))
        if source is not None and source[1].bias is not None and name not in seen:
            found[name] = source[:2]
        seen.add(name)

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [m.register_forward_hook(after(n)) for n, m in subject.model.named_modules() if isinstance(m, kinds)]
    try:
        subject.outputs([batch], observe=watch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def distances(subject: Subject, pool: measure.Pool) -> Mapping[str, float]:
    """Each layer's distance from its data: the median over its channels, in the order of calls."""
    norms = subject.norms
    return {n: measure.distance(norms[n], m).nan_to_num(torch.inf).median().item() for n, m in pool.moments.items()}
