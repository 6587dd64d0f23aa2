"""What a model's outputs are worth: accuracy, a loss, or agreement with training form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenly.tools.batches import label_of, samples_of
from evenly.tools.finding import Gap

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Score:
    """How outputs are scored.

    Args:
        name: in a sentence.
        unit: behind the number.
        up: whether more is better.
        of: from the outputs of all held-out batches to the score.
        chance: a difference that means nothing.
    """

    name: str
    unit: str
    up: bool
    of: Callable[[Sequence[Any]], float]
    chance: Callable[[float, float], float]

    def lost(self, training: float, evaluation: float) -> float:
        """How much worse evaluation is; NaN is a total loss."""
        lost = training - evaluation if self.up else evaluation - training
        return lost if math.isfinite(lost) else math.inf

    def gap(self, training: float, evaluation: float) -> Gap:
        """Both forms, and whether they differ by more than chance."""
        lost = self.lost(training, evaluation)
        return Gap(self.name, self.unit, training, evaluation, lost, lost > self.chance(training, evaluation))


def choose(batches: Sequence[Any], reference: Sequence[Any], loss: Loss | None, noise: float) -> Score:
    """The score that fits: ``loss``, else accuracy where there are classes, else agreement.

    Args:
        batches: held out.
        reference: the model's outputs for them in training form.
        loss: ``loss(output, batch)``, less is better.
        noise: disagreement, in percent, between training form and well-measured statistics: as
            much is the batches' own.
    """
    if loss is not None:
        return Score("loss", "", False, lambda outputs: _mean_loss(outputs, batches, loss), lambda t, e: 0.05 * abs(t))
    if all(_classified(output, batch) for output, batch in zip(reference, batches, strict=True)):
        number = sum(label.numel() for batch in batches if (label := label_of(batch)) is not None)
        return Score("accuracy", "points", True, lambda outputs: _accuracy(outputs, batches), _chance(number))
    return Score(
        "disagreement with training form", "%", False,
        lambda outputs: disagreement(outputs, reference), lambda t, e: max(10.0, 2 * noise),
    )  # fmt: skip


def tensor_of(output: Any) -> Tensor:
    """The output itself, its ``logits``, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    items = output.values() if isinstance(output, Mapping) else output
    for item in items if isinstance(items, (tuple, list)) or isinstance(output, Mapping) else ():
        if isinstance(item, Tensor):
            return item
    raise TypeError(f"the model returns {type(output).__name__}; give forward= that returns a tensor, or loss=.")


def disagreement(outputs: Sequence[Any], reference: Sequence[Any]) -> float:
    """Root mean square difference, in percent of the reference's standard deviation; 1000 and all above is 1000."""
    ours = torch.cat([tensor_of(o).double().flatten() for o in outputs])
    theirs = torch.cat([tensor_of(o).double().flatten() for o in reference])
    apart = 100 * float((ours - theirs).square().mean().sqrt() / theirs.std(correction=0).clamp(min=1e-12))
    return apart if apart < 1000 else 1000.0  # NaN is not less than anything


def _classified(output: Any, batch: Any) -> bool:
    label = label_of(batch)
    if label is None or label.is_floating_point() or not label.numel():
        return False
    logits = tensor_of(output)
    fits = logits.ndim == label.ndim + 1 and logits.shape[0] == label.shape[0] and logits.shape[2:] == label.shape[1:]
    return fits and logits.shape[1] > 1 and int(label.min()) >= 0 and int(label.max()) < logits.shape[1]


def _accuracy(outputs: Sequence[Any], batches: Sequence[Any]) -> float:
    right = total = 0
    for output, batch in zip(outputs, batches, strict=True):
        logits, label = tensor_of(output), label_of(batch)
        assert label is not None
        # argmax of NaN is a class like any other: it must not be taken for an answer.
        right += int(((logits.argmax(1) == label.to(logits.device)) & torch.isfinite(logits).all(1)).sum())
        total += label.numel()
    return 100 * right / total


def _chance(number: int) -> Callable[[float, float], float]:
    """Two standard errors of a difference of two accuracies, and never less than two points."""

    def chance(training: float, evaluation: float) -> float:
        error = sum(p * (100 - p) / number for p in (training, evaluation)) ** 0.5
        return max(2.0, 2.0 * float(error))

    return chance


def _mean_loss(outputs: Sequence[Any], batches: Sequence[Any], loss: Loss) -> float:
    weights = [max(samples_of(batch), 1) for batch in batches]
    losses = [float(loss(output, batch)) for output, batch in zip(outputs, batches, strict=True)]
    return sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
