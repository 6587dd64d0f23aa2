"""One clause of the contract: a padded sample is what it is alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools.batches import mapped, parts_of, samples_of
from evenly.tools.checks import apart
from evenly.tools.finding import listed
from evenly.tools.labels import tensor_of
from evenly.tools.names import line
from evenly.tools.probe import Subject


@dataclass(frozen=True)
class Verdict:
    """One clause of the contract.

    Args:
        name: of the clause.
        passed: whether it holds; None where it could not be tried.
        said: what was measured, or why it was not tried.
        difference: the measured difference, in standard deviations of the output or in numbers.
        layers: those that break it.
    """

    name: str
    passed: bool | None
    said: str
    difference: float = 0.0
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        mark = {True: "holds", False: "BROKEN", None: "not tried"}[self.passed]
        return line(f"{mark:<9}  {self.name}: {self.said}")


def padded(subject: Subject, batch: Any, lengths: Any, axis: int, tolerance: float) -> Verdict:
    """Each sample cut to its length, against itself with its padding; the layers where it enters.

    Raises:
        ValueError: lengths do not fit the batch.
    """
    if lengths is None:
        return Verdict("padded", None, "no lengths were given")
    sizes = torch.as_tensor(lengths).tolist()
    if len(sizes) != samples_of(batch):
        raise ValueError(f"{len(sizes)} lengths do not belong to {samples_of(batch)} samples.")
    inputs: list[Tensor] = []
    mapped(batch, lambda t: inputs.append(t) or t)  # type: ignore[func-returns-value]
    whole = inputs[0].shape[axis]
    if not all(0 < n <= whole for n in sizes):
        raise ValueError(
            f"lengths must lie between 1 and {whole}, the size of axis {axis}, got {min(sizes)} to {max(sizes)}."
        )
    (together,), padded_calls = _calls(subject, batch)
    worst, guilty = 0.0, set()
    for number, (part, size) in enumerate(zip(parts_of(batch, 1), sizes, strict=True)):
        cut = mapped(part, partial(_cut, axis, whole, size))
        (alone,), alone_calls = _calls(subject, cut)
        ours, theirs = tensor_of(together)[number : number + 1], tensor_of(alone)
        if ours.shape != theirs.shape and ours.ndim == theirs.ndim:
            for at in range(1, ours.ndim):
                ours = ours.narrow(at, 0, min(ours.shape[at], theirs.shape[at]))
        worst = max(worst, apart(theirs, ours))
        guilty |= _leaks(padded_calls, alone_calls, number, tolerance)
    bad = worst > tolerance
    layers = tuple(n for n in padded_calls if n in guilty) if bad else ()
    said = f"padded and alone differ by {worst:.2g} standard deviations"
    if layers:
        said += f"; it enters at {listed(layers[:1])}" + (f", then {listed(layers[1:])}" if layers[1:] else "")
    if bad:
        said += "; give norms mask= (evenly.functional.lengths_to_mask), and zero padded places before convolutions"
    return Verdict("padded", not bad, said, worst, layers)


def _cut(axis: int, whole: int, size: int, t: Tensor) -> Tensor:
    return t.narrow(axis, 0, size) if t.ndim > 1 and t.shape[axis] == whole else t


def _calls(subject: Subject, batch: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """Outputs, and the output of each layer that has parameters or mixes places."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in subject.model.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(_keep(found, name)))
    try:
        return subject.run([batch])[0], found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and name not in found:
            found[name] = output.detach().cpu()

    return hook


def _leaks(padded: dict[str, Tensor], alone: dict[str, Tensor], number: int, tolerance: float) -> set[str]:
    """The layers whose output at real places differs."""
    bad = set()
    for name, theirs in alone.items():
        ours = padded.get(name)
        if ours is None or ours.ndim != theirs.ndim or len(ours) <= number:
            continue
        ours = ours[number : number + 1]
        for at in range(1, ours.ndim):
            ours = ours.narrow(at, 0, min(ours.shape[at], theirs.shape[at]))
        if apart(theirs, ours) > tolerance:
            bad.add(name)
    return bad
