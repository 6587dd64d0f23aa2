"""Three checks that need no knowledge of the model: twice the same, alone the same, both modes the same input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools.batches import parts_of, samples_of
from evenly.tools.finding import Finding, listed
from evenly.tools.labels import tensor_of
from evenly.tools.observe import Call
from evenly.tools.probe import Subject

_SAMPLES = 8  # of a batch that are evaluated one by one


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, in standard deviations of ``b``; infinite where only one is finite."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    if not bool((a.isfinite() == b.isfinite()).all()):
        return float("inf")
    far = (a - b)[a.isfinite()].abs()
    return float(far.max() / b[b.isfinite()].std(correction=0).clamp(min=1e-6)) if len(far) else 0.0


def twice(subject: Subject, batch: Any) -> Iterator[Finding]:
    """Evaluate twice: the same numbers?"""
    (first, second), seen = subject.run([batch, batch])
    far = apart(tensor_of(first), tensor_of(second))
    if far <= 1e-5:
        return
    where = tuple(dict.fromkeys(seen.random)) or ("",)
    kinds = sorted(set(seen.random.values()))
    stuck = any(isinstance(m, nn.modules.dropout._DropoutNd) for n, m in subject.model.named_modules() if n in where)
    yield Finding(
        "random-evaluation", "error", where,
        f"the same batch evaluated twice differs by {far:.2g} standard deviations; random numbers are drawn in "
        f"{listed(where)} ({', '.join(kinds) or 'unknown'}).",
        "every score of eval() is a draw, and worse than the network is.",
        "a Dropout there is not reached by eval(): register it, or let train() pass on its mode." if stuck
        else "write F.dropout(x, p, training=self.training), and noise only where self.training.",
    )  # fmt: skip


def alone(subject: Subject, batch: Any) -> Iterator[Finding]:
    """Evaluate one by one, and in a batch: the same numbers?"""
    if samples_of(batch) < 2:
        return
    few = parts_of(batch, min(_SAMPLES, samples_of(batch)))[0]
    few = parts_of(few, _SAMPLES)[0] if samples_of(few) > _SAMPLES else few
    together, _ = subject.run([few])
    try:
        single, _ = subject.run(parts_of(few, 1))
        far = apart(torch.cat([tensor_of(o) for o in single]), tensor_of(together[0]))
    except ValueError:  # torch refuses batch statistics of one value
        far = float("inf")
    if far <= 1e-2:
        return
    by_batch = [n for n, used in subject.evaluation.used.items() if used != "running"]
    hidden = [n for n in by_batch if not subject.sites[n].registered]
    layers = tuple(by_batch) or tuple(subject.evaluation.unknown)
    evidence = f"a sample evaluated alone differs from itself in a batch by {far:.2g} standard deviations"
    if hidden:
        why = (
            f"; {listed(tuple(hidden))} is held in a plain list or attribute, which eval(), state_dict() and to() do "
            "not reach, and used the statistics of the batch."
        )
        remedy = "hold norms in nn.ModuleList or nn.ModuleDict, then train on or recalibrate."
    elif layers:
        why = f"; {listed(layers)} used the statistics of the batch in eval()."
        remedy = (
            "pass training=self.training to F.batch_norm, keep running statistics (track_running_stats=True), and let "
            "eval() reach every norm; then recalibrate."
        )
    else:
        why = "; no norm was seen to use the statistics of the batch."
        remedy = "look at padding, at attention without a mask, and at means over the batch axis."
    yield Finding(
        "batch-dependent", "error" if hidden or by_batch else "warning", layers, evidence + why,
        "a prediction depends on what else is in its batch.", remedy,
    )  # fmt: skip


def same_input(subject: Subject, batch: Any) -> Iterator[Finding]:
    """The first norm's input under train() and under eval(): the same?"""
    if subject.unrun:
        return
    ours, (theirs, seen) = _first_input(subject, batch, train=False)[0], _first_input(subject, batch, train=True)
    if ours is None or theirs is None or ours.site.name != theirs.site.name:
        return
    far = apart(theirs.x.cpu(), ours.x.cpu())
    if far <= 1e-3:
        return
    random = tuple(seen.random)
    why = f"random numbers are drawn in {listed(random)}" if random else "the forward branches on self.training"
    yield Finding(
        "training-branch", "note", (ours.site.name,),
        f"the input of {ours.site.name or 'the model'}, the first norm, differs between train() and eval() by up to "
        f"{far:.2g} standard deviations: {why}.",
        "running statistics are of what train() makes; evaluation normalises something else.",
        "nothing, where that is augmentation or dropout and evaluation scores well; else recalibrate, which measures "
        "what eval() makes.",
    )  # fmt: skip


def _first_input(subject: Subject, batch: Any, *, train: bool) -> tuple[Call | None, Any]:
    first: list[Call] = []

    def keep(call: Call) -> None:
        if not first:
            first.append(call._replace(x=call.x.detach().clone()))

    _, seen = subject.run([batch], train=train, see=keep)
    return (first[0] if first else None), seen


def one_element(subject: Subject, batch: Any) -> Iterator[Finding]:
    """Norms whose mean is over one element: the output is the bias, whatever the input."""
    found: dict[str, str] = {}

    def hook(name: str) -> Any:
        def see(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input")
            masked = kwargs.get("mask", args[2] if len(args) > 2 else None) is not None
            if isinstance(x, Tensor) and not masked and x.numel() and _count(norm, x) == 1:
                found[name] = str(tuple(x.shape))

        return see

    kinds = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.batchnorm._BatchNorm)
    norms = [(n, m) for n, m in subject.model.named_modules() if isinstance(m, kinds)]
    handles = [m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in norms
               if not isinstance(m, torch.jit.ScriptModule)]  # fmt: skip
    try:
        subject.run([batch])
    except Exception:  # torch refuses some of these, which the finding says better; the rest is said at the first call
        if not found:
            return
    finally:
        for handle in handles:
            handle.remove()
    if found:
        name, shape = next(iter(found.items()))
        yield Finding(
            "one-element", "error", tuple(found),
            f"each mean is taken over one element: the input of {name or 'the model'} has shape {shape}.",
            "x − mean is 0: the output is the bias, whatever the input; torch refuses some of these in training.",
            "larger batches or inputs, fewer groups, or no norm there; for a last batch of one: drop_last=True.",
        )  # fmt: skip


def _count(norm: nn.Module, x: Tensor) -> int:
    """Over how many elements one mean of ``norm`` is taken, for input ``x``."""
    if isinstance(norm, nn.LayerNorm):
        return int(torch.Size(norm.normalized_shape).numel())
    if isinstance(norm, nn.GroupNorm):
        return x[0].numel() // norm.num_groups
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        channel = getattr(norm, "channel", 1)
        return x.numel() // max(x.shape[channel], 1) if x.ndim > 1 else 2
    return int(torch.Size(x.shape[2:]).numel()) if x.ndim > 2 else 1
