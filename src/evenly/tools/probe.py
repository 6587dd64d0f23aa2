"""A model seen at work: in its user's own train() and eval(), and with other statistics handed to its norms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools import prove
from evenly.tools.batches import Forward, feed, mapped, samples_of
from evenly.tools.measure import Pool
from evenly.tools.observe import Call, Seen, Sight
from evenly.tools.sites import Site, preserved, sites

Statistics = Mapping[str, tuple[Tensor, Tensor]]


@dataclass
class Subject:
    """The model under examination, how to run it, and what its norms were seen to do.

    Args:
        model: left as it is.
        forward: ``forward(model, batch)``, where the rule does not fit.
        sites: who keeps running statistics, by name.
        unseen: sites whose arithmetic cannot be seen.
        evaluation: what was seen under the user's own ``eval()``.
        training: what was seen under the user's own ``train()``.
        unrun: why ``train()`` could not be run, or nothing.
        looked: whether the two were run.
    """

    model: nn.Module
    forward: Forward | None = None
    sites: dict[str, Site] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    evaluation: Seen = field(default_factory=Seen)
    training: Seen = field(default_factory=Seen)
    unrun: str = ""
    looked: bool = False

    def __post_init__(self) -> None:
        if not self.sites:
            self.sites = sites(self.model)

    @property
    def switching(self) -> list[str]:
        """The sites that use the batch's statistics under ``train()``; all others do the same in both forms."""
        if self.unrun:
            return [name for name in self.sites if name in self._asking and name not in self.unseen]
        seen = [name for name, used in self.training.used.items() if used != "running"]
        # What the first batch did not reach under train() is judged by its flags.
        later = [n for n in self.evaluation.used if n not in self.training.used and n in self._asking]
        return seen + later

    def look(self, batch: Any) -> None:
        """Run the user's own ``eval()`` and ``train()`` on one batch, and see."""
        self.looked = True
        with preserved(self.model), torch.no_grad():
            set_mode(self.model, train=False)
            self.unseen = prove.prove(self.model, self.sites, lambda: feed(self.model, batch, self.forward))
        _, self.evaluation = self.run([batch])
        with preserved(self.model):
            set_mode(self.model, train=True)
            self._asking = {name for name, site in self.sites.items() if site.in_training}
        try:
            _, self.training = self.run([batch], train=True)
        except Exception as error:  # a probe: what it raised is said, and the flags are believed
            self.unrun = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"

    def run(
        self,
        batches: Iterable[Any],
        *,
        train: bool = False,
        given: Callable[[Call], tuple[Tensor, Tensor] | None] | None = None,
        see: Callable[[Call], None] | None = None,
        tick: Callable[[int], None] | None = None,
        keep: bool = True,
    ) -> tuple[list[Any], Seen]:
        """The outputs for all batches and what was seen; the model is as before afterwards.

        Args:
            batches: what to run.
            train: the user's own ``train()`` in place of ``eval()``.
            given: mean and variance to use in a call, None: the norm's own.
            see: takes each call.
            tick: called with the number of each batch done.
            keep: whether outputs are kept, on the CPU.
        """
        outputs = []
        with preserved(self.model), torch.no_grad():
            set_mode(self.model, train)
            sight = Sight(self.model, self.sites, see, given)
            with sight.on():
                for number, batch in enumerate(batches, 1):
                    output = feed(self.model, batch, self.forward)
                    if keep:
                        outputs.append(mapped(output, lambda t: t.detach().cpu()))
                    if tick is not None:
                        tick(number)
        return outputs, sight.seen

    def outputs(
        self,
        batches: Sequence[Any],
        *,
        using: Collection[str] | None = (),
        statistics: Statistics | None = None,
        see: Callable[[Call], None] | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """The outputs in evaluation form.

        Args:
            batches: what to run.
            using: sites that use their batch's statistics (None: all that do in training).
            statistics: mean and variance by site, in place of its own.
            see: takes each call.
            tick: called with the number of each batch done.
        """
        chosen = set(self.switching if using is None else using)
        return self.run(batches, given=handed(chosen, statistics), see=see, tick=tick)[0]

    def measure(
        self,
        batches: Iterable[Any],
        pool: Pool | None = None,
        see: Callable[[Call], None] | None = None,
        tick: Any = None,
    ) -> Pool:
        """The moments of what is normalised, each norm with its batch's statistics as in training.

        Args:
            batches: what to run.
            pool: what they are added to; None: a new one.
            see: takes each call.
            tick: called with the number of each batch done.
        """
        into, chosen = Pool() if pool is None else pool, set(self.switching)

        def add(call: Call) -> None:
            if call.site.name in chosen and call.x.numel():
                into.add(call.site.name, call.moments())
            if see is not None:
                see(call)

        def counted() -> Iterable[Any]:
            for batch in batches:
                into.samples += samples_of(batch)
                yield batch

        self.run(counted(), given=handed(chosen, None), see=add, tick=tick, keep=False)
        return into


def handed(using: Collection[str], statistics: Statistics | None) -> Callable[[Call], tuple[Tensor, Tensor] | None]:
    """What a norm is handed: its batch's statistics, others', or None (its own)."""
    last: dict[str, tuple[Tensor, Tensor]] = {}

    def given(call: Call) -> tuple[Tensor, Tensor] | None:
        name = call.site.name
        if name in using:
            moments = call.moments()
            # One value has no variance: the last batch that had one speaks for it.
            if bool((moments.count > 1).any()) or name not in last:
                last[name] = (moments.mean, moments.var)
                if not bool((moments.count > 1).any()):
                    return call.site.read()
            return last[name]
        return None if statistics is None else statistics.get(name)

    return given


def set_mode(model: nn.Module, train: bool) -> None:
    """The user's own ``train()`` or ``eval()``; an exported program has neither."""
    with suppress(NotImplementedError):
        model.train() if train else model.eval()


def counted_twice(subject: Subject, batch: Any) -> dict[str, tuple[int, int]]:
    """Per layer, by how much one training step raises its counter: in forward, and again in backward.

    Only layers whose counter moves in backward are named.
    """
    counters = {name: site.counter for name, site in subject.sites.items() if site.counter is not None}
    with preserved(subject.model), torch.enable_grad():
        set_mode(subject.model, train=True)
        before = {name: int(c) for name, c in counters.items()}
        output = feed(subject.model, batch, subject.forward)
        between = {name: int(c) for name, c in counters.items()}
        total = sum(t.float().square().mean() for t in _differentiable(output))
        if not isinstance(total, Tensor):
            return {}
        total.backward()
        moved = {n: (between[n] - before[n], int(c) - between[n]) for n, c in counters.items()}
    return {name: steps for name, steps in moved.items() if steps[1] > 0}


def _differentiable(output: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(output, lambda t: found.append(t) or t if t.requires_grad else t)  # type: ignore[func-returns-value]
    return found
