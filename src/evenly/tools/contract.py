"""A contract about a model's norms, to be put into its own tests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools.batches import Forward, feed, mapped, parts_of, samples_of
from evenly.tools.calls import settle
from evenly.tools.checks import apart
from evenly.tools.finding import listed
from evenly.tools.labels import tensor_of
from evenly.tools.padded import Verdict, padded
from evenly.tools.probe import Subject, set_mode
from evenly.tools.sites import modules, preserved, sites

_SAMPLES = 8


class BrokenError(AssertionError):
    """A model breaks the contract."""


@dataclass(frozen=True)
class Contract:
    """What `check_model` found, clause by clause."""

    verdicts: tuple[Verdict, ...]
    broken: tuple[Verdict, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "broken", tuple(v for v in self.verdicts if v.passed is False))

    def __getitem__(self, name: str) -> Verdict:
        return next(v for v in self.verdicts if v.name == name)

    def __str__(self) -> str:
        return "\n".join(map(str, self.verdicts))

    def raise_if_broken(self) -> Contract:
        """Itself, where every clause that could be tried holds.

        Raises:
            BrokenError: one does not; every one that does not is in the message.
        """
        if self.broken:
            raise BrokenError("\n".join(str(v) for v in self.broken))
        return self


def check_model(
    model: nn.Module, batch: Any, *, lengths: Tensor | Sequence[int] | None = None, axis: int = -1,
    forward: Forward | None = None, tolerance: float | None = None,
) -> Contract:  # fmt: skip
    """Check what everybody takes for granted of a model with norms.

    Evaluation is deterministic; a sample alone equals itself in a batch; padded, it equals itself
    alone; what is frozen stays frozen through ``train()`` and a step; ``eval()`` and ``train()`` set every
    norm; a state_dict keeps the statistics, and so do files of trainable parameters with what they
    leave out; one training step counts every norm once. The model is left as it was.

    Args:
        model: any torch model.
        batch: at least two samples (as for `evenly.recalibrate`).
        lengths: of the samples along ``axis``, where the batch is padded.
        axis: of the time.
        forward: ``forward(model, batch)`` for batches that need another call.
        tolerance: a difference that is still rounding, in standard deviations of the output; default: eight
            times the model's own rounding error, measured against float64, and 1e-6.

    Returns:
        The verdicts; ``.raise_if_broken()`` makes them a test.

    Raises:
        ValueError: the model cannot be called with this batch, or lengths do not fit.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> len(check_model(net, torch.randn(4, 3)).raise_if_broken().verdicts)
        8
    """
    call, _ = settle(model, batch, forward)
    subject = Subject(model, call)
    subject.look(batch)
    tolerance = _rounding(subject, batch) if tolerance is None else tolerance
    clauses: tuple[tuple[str, Callable[[], Verdict]], ...] = (
        ("deterministic", lambda: _deterministic(subject, batch, tolerance)),
        ("alone", lambda: _alone(subject, batch, tolerance)),
        ("padded", lambda: padded(subject, batch, lengths, axis, tolerance)),
        ("frozen", lambda: _frozen(subject, batch)),
        ("modes", lambda: _modes(subject)),
        ("state_dict", lambda: _state_dict(subject, batch)),
        ("trainable only", lambda: _trainable_only(subject)),
        ("counted once", lambda: _counted(subject, batch)),
    )
    return Contract(tuple(_tried(name, clause) for name, clause in clauses))


def _rounding(subject: Subject, batch: Any) -> float:
    """What rounding alone does: the model's outputs against those of a copy in float64."""
    (ours,), _ = subject.run([batch])
    try:
        exact = Subject(copy.deepcopy(subject.model).double(), subject.forward)
        (theirs,), _ = exact.run([mapped(batch, lambda t: t.double() if t.is_floating_point() else t)])
        far = apart(tensor_of(ours), tensor_of(theirs))
    except Exception:  # a model that cannot be copied, or is float32 by its own code
        return 1e-3
    return 8 * far + 1e-6 if far < 1e-2 else 1e-3


def _tried(name: str, clause: Callable[[], Verdict]) -> Verdict:
    try:
        return clause()
    except (
        RuntimeError,
        TypeError,
        AttributeError,
        AssertionError,
        KeyError,
        IndexError,
        NotImplementedError,
    ) as error:
        return Verdict(name, None, f"it raised {type(error).__name__}: {' '.join(str(error).split())[:160]}")


def _deterministic(subject: Subject, batch: Any, tolerance: float) -> Verdict:
    (first, second), seen = subject.run([batch, batch])
    far = apart(tensor_of(first), tensor_of(second))
    where = tuple(seen.random) if far > tolerance else ()
    said = f"two evaluations differ by {far:.2g} standard deviations" + (
        f"; random numbers are drawn in {listed(where)}" if where else ""
    )
    return Verdict("deterministic", far <= tolerance, said, far, where)


def _alone(subject: Subject, batch: Any, tolerance: float) -> Verdict:
    total = samples_of(batch)
    if total < 2:
        return Verdict("alone", None, "the batch has fewer than two samples")
    few = parts_of(batch, 1)[:_SAMPLES]
    (together,), _ = subject.run([batch])
    used = tuple(n for n, used in subject.evaluation.used.items() if used != "running")
    try:
        single, _ = subject.run(few)
    except ValueError as error:  # torch refuses batch statistics of one value
        return Verdict("alone", False, f"a sample alone is refused: {error}", float("inf"), used)
    far = apart(torch.cat([tensor_of(o) for o in single]), tensor_of(together)[: len(few)])
    guilty = used or tuple(subject.evaluation.unknown)
    guilty = guilty if far > tolerance else ()
    said = f"a sample alone and in a batch differ by {far:.2g} standard deviations" + (
        f"; {listed(guilty)} used the statistics of the batch" if guilty else ""
    )
    return Verdict("alone", far <= tolerance, said, far, guilty)


def _frozen(subject: Subject, batch: Any) -> Verdict:
    """Sites that the model means to be frozen: by evenly.freeze, by train() itself, or as given in eval mode."""
    frozen = {n for n, s in subject.sites.items() if s.frozen}
    given = {
        n for n, s in subject.sites.items() if s.module is not None and not s.module.training and subject.model.training
    }
    with preserved(subject.model):
        set_mode(subject.model, train=True)
        held = {n for n, s in subject.sites.items() if s.module is not None and not s.module.training}
        meant = frozen | held | given
        if not meant:
            return Verdict("frozen", None, "no norm is frozen")
        before = {n: [t.clone() for t in subject.sites[n].read()] for n in meant}
        _step(subject, batch)
        moved = {
            n: max(apart_numbers(a, b) for a, b in zip(before[n], subject.sites[n].read(), strict=True)) for n in meant
        }
    bad = tuple(n for n, far in moved.items() if far > 0)
    said = f"{len(meant)} frozen norms, {len(bad)} moved in a training step" + (f": {listed(bad)}" if bad else "")
    return Verdict("frozen", not bad, said, max(moved.values()), bad)


def apart_numbers(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors; NaN in the same places is none."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b)[~same].abs().nan_to_num(torch.inf).max()) if not bool(same.all()) else 0.0


def _modes(subject: Subject) -> Verdict:
    """Does eval() reach every norm, and train() bring each back to what it was in training?"""
    with preserved(subject.model):
        set_mode(subject.model, train=True)
        before = {n: m.training for n, m, _ in modules(subject.model)}
        set_mode(subject.model, train=False)
        stuck = tuple(n for n, s in subject.sites.items() if s.module is not None and s.module.training)
        set_mode(subject.model, train=True)
        lost = tuple(n for n, m, _ in modules(subject.model) if m.training != before[n] and n in subject.sites)
    bad = stuck + lost
    said = "eval() reaches every norm, and train() brings every mode back" if not bad else (
        f"eval() does not reach {listed(stuck)}" if stuck else f"train() does not bring back {listed(lost)}"
    )  # fmt: skip
    return Verdict("modes", not bad, said, float(len(bad)), bad)


def _state_dict(subject: Subject, batch: Any) -> Verdict:
    """Do the statistics survive a state_dict, into a copy whose own are other?"""
    missing = tuple(n for n, s in subject.sites.items() if s.keys[0] is None or s.keys[1] is None)
    if not subject.sites:
        return Verdict("state_dict", None, "no norm keeps running statistics")
    twin = copy.deepcopy(subject.model)
    theirs = sites(twin)
    for name, site in theirs.items():
        if name in subject.sites:
            site.write(torch.full_like(site.mean, 7.0), torch.full_like(site.var, 7.0))
    twin.load_state_dict({k: v.clone() if isinstance(v, Tensor) else v for k, v in subject.model.state_dict().items()})
    theirs = sites(twin)
    far = {n: max(apart_numbers(a, b) for a, b in zip(s.read(), theirs[n].read(), strict=True))
           for n, s in subject.sites.items() if n in theirs}  # fmt: skip
    bad = tuple(dict.fromkeys([*missing, *(n for n, d in far.items() if d > 0)]))
    said = f"{len(subject.sites) - len(bad)} of {len(subject.sites)} norms keep their statistics" + (
        f"; lost: {listed(bad)}" if bad else ""
    )
    return Verdict("state_dict", not bad, said, max(far.values(), default=0.0), bad)


def _trainable_only(subject: Subject) -> Verdict:
    """Files of trainable parameters alone (adapters) leave buffers out: do statistics move that they would lose?"""
    parameters = dict(subject.model.named_parameters())
    frozen = [k for k, p in parameters.items() if not p.requires_grad]
    if not frozen:
        return Verdict("trainable only", None, "every parameter is trainable, so files hold the whole model")
    moving = tuple(n for n in subject.switching if subject.sites[n].keys[0] is not None)
    said = (
        f"{len(frozen)} of {len(parameters)} parameters are held; {len(moving)} norms move their statistics in "
        "training, which a file of trainable parameters does not hold"
    )
    return Verdict(
        "trainable only", not moving, said + (f": {listed(moving)}" if moving else ""), float(len(moving)), moving
    )


def _step(subject: Subject, batch: Any) -> None:
    """One forward and backward; the optimizer's part cannot move statistics."""
    with torch.enable_grad():
        outputs: list[Tensor] = []
        mapped(feed(subject.model, batch, subject.forward), lambda t: outputs.append(t) or t)  # type: ignore[func-returns-value]
        total = sum(t.float().square().mean() for t in outputs if t.requires_grad)
        if isinstance(total, Tensor):
            total.backward()


def _counted(subject: Subject, batch: Any) -> Verdict:
    """One training step raises each counter by one, and each running average moves with its own batch once."""
    counters = {n: s.counter for n, s in subject.sites.items() if s.counter is not None and n in subject.switching}
    if not counters:
        return Verdict("counted once", None, "no norm counts batches in training")
    with preserved(subject.model):
        set_mode(subject.model, train=True)
        before = {n: int(c) for n, c in counters.items()}
        _step(subject, batch)
        steps = {n: int(c) - before[n] for n, c in counters.items()}
    bad = tuple(n for n, step in steps.items() if step != 1)
    worst = max(steps.values(), key=lambda s: abs(s - 1))
    said = f"{len(steps) - len(bad)} of {len(steps)} norms are counted once" + (
        f"; {worst} times: {listed(bad)} (activation checkpointing, or a module called more than once)" if bad else ""
    )
    return Verdict("counted once", not bad, said, float(abs(worst - 1)), bad)
