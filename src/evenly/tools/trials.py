"""Remedies, each tried and scored on held-out batches; the model is as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evenly.core.running import ema
from evenly.tools import measure, probe, walk
from evenly.tools.batches import feed, mapped, parts_of, samples_of
from evenly.tools.finding import Gap, Trial
from evenly.tools.freeze import hold, is_frozen, release
from evenly.tools.probe import Observed, Subject
from evenly.tools.recalibrate import set_statistics
from evenly.tools.scores import Score, tensor_of

Change = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """Where remedies are tried.

    Args:
        subject: the model.
        seen: what its norms saw on other batches.
        batches: held out, to score on.
        score: what outputs are worth.
        gap: what is to be restored.
    """

    subject: Subject
    seen: Observed
    batches: Sequence[Any]
    score: Score
    gap: Gap

    def try_change(self, name: str, command: str, change: Change, layers: tuple[str, ...] = ()) -> Trial:
        """A remedy that writes tensors: what it scores, and what it wrote."""
        model = self.subject.model
        before = {key: value.detach().clone() for key, value in model.state_dict().items()}
        with walk.restored(model):
            with torch.no_grad():
                change()
            after = {k: v.detach().clone() for k, v in model.state_dict().items() if not _same(v, before[k])}
            outputs = self.subject.outputs(self.batches)
        return self._trial(name, command, self.score.of(outputs), layers, {k: v.cpu() for k, v in after.items()})

    def try_outputs(self, name: str, command: str, outputs: Sequence[Any]) -> Trial:
        """A remedy that changes how the model is run."""
        return self._trial(name, command, self.score.of(outputs), (), {})

    def _trial(
        self, name: str, command: str, value: float, layers: tuple[str, ...], changes: dict[str, Tensor]
    ) -> Trial:
        lost = self.score.lost(self.gap.training, value)
        restored = self.gap.lost - lost if lost < float("inf") else 0.0
        return Trial(name, value, restored, command, layers, changes)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def single_layers(bench: Bench, names: Sequence[str]) -> list[Trial]:
    """Recalibrating one layer alone, each; the best first."""
    tried = [
        bench.try_change(
            f"recalibrate {name or '(model)'} alone",
            f"recalibrate, of {name or 'the model'} only",
            partial(set_statistics, bench.subject.model, bench.seen.pool, only=(name,)),
            (name,),
        )
        for name in names
    ]
    return sorted(tried, key=lambda t: -t.restored)


def remedies(bench: Bench) -> Iterator[Trial]:
    """Everything but single layers, one after the other."""
    model, pool = bench.subject.model, bench.seen.pool
    yield bench.try_change(
        "recalibrate all", "evenly.recalibrate(model, batches)", partial(set_statistics, model, pool)
    )
    for blend in (0.25, 0.5, 0.75):
        yield bench.try_change(
            f"adapt, blend {blend}",
            f"evenly.adapt(model, batches, blend={blend})",
            partial(set_statistics, model, pool, blend=blend),
        )
    momentum = _other_momentum(bench.subject)
    yield bench.try_change(
        f"go on with momentum {momentum:g}", f"momentum={momentum:g}, and train on", partial(_average, bench, momentum)
    )
    yield bench.try_outputs(
        "batch statistics at test time", "keep norms in training form: predictions then depend on the batch",
        bench.subject.outputs(bench.batches, using=None),
    )  # fmt: skip
    yield from _ghosts(bench)
    yield _frozen(bench)
    yield from _drop_bias(bench)


def _other_momentum(subject: Subject) -> float:
    """The other way round where momentum looks inverted, else torch's default or a tenth of it."""
    now = next((m for norm in subject.norms.values() if (m := getattr(norm, "momentum", None)) is not None), 0.1)
    return max(1 - now, 0.01) if now >= 0.5 else (0.01 if now == 0.1 else 0.1)


def _average(bench: Bench, momentum: float) -> None:
    """The running statistics after the batches seen, at another momentum."""
    weight = ema(momentum)
    for name, norm in bench.subject.norms.items():
        mean, var = measure.running(norm)
        for seen, moments in enumerate(bench.seen.by_batch.get(name, ()), 1):
            mean = mean + weight(seen) * (moments.mean - mean)
            var = var + weight(seen) * (moments.unbiased_var - var)
        measure.write(norm, mean, var)


def _ghosts(bench: Bench) -> Iterator[Trial]:
    """Batch statistics over parts of a batch: what the model would say in smaller batches."""
    size = 8
    if all(samples_of(batch) >= 2 * size for batch in bench.batches):
        outputs = []
        for batch in bench.batches:
            parts = bench.subject.outputs(parts_of(batch, size), using=None)
            outputs.append(torch.cat([tensor_of(part) for part in parts]))
        yield bench.try_outputs(
            f"batch statistics over ghosts of {size}",
            f"evenly.convert(model, norm='ghost:…'), {size} samples each",
            outputs,
        )


def _frozen(bench: Bench) -> Trial:
    """Recalibrated and frozen, then run in training mode: the two forms are one from then on."""
    model, norms = bench.subject.model, bench.subject.norms
    with walk.restored(model), torch.no_grad():
        set_statistics(model, bench.seen.pool)
        held = [norm for norm in norms.values() if not is_frozen(norm)]
        for norm in held:
            hold(norm)
        try:
            model.eval()
            outputs = []
            for batch in bench.batches:
                for norm in norms.values():
                    norm.training = True
                outputs.append(mapped(feed(model, batch, bench.subject.forward), lambda t: t.cpu()))
        finally:
            for norm in held:
                release(norm)
    return bench.try_outputs("freeze after recalibrating, in train()", "evenly.freeze(model), and train on", outputs)


def _drop_bias(bench: Bench) -> Iterator[Trial]:
    """The bias before a norm moved into the running mean: nothing changes but the number of parameters."""
    found = probe.producers(bench.subject, bench.batches[0])
    norms = bench.subject.norms
    if not found:
        return

    def change() -> None:
        for name, (_, producer) in found.items():
            mean, var = measure.running(norms[name])
            assert isinstance(producer.bias, Tensor)
            measure.write(norms[name], mean - producer.bias.double(), var)
            producer.bias.zero_()

    number = sum(len(measure.running(norms[name])[0]) for name in found)
    yield bench.try_change(
        f"drop the bias before {len(found)} norm{'s' * (len(found) != 1)} ({number} numbers)",
        "evenly.convert(model, drop_bias=True)",
        change,
    )
