"""What a model's outputs are worth: accuracy, a loss, or agreement with training form; and what chance explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly.tools.batches import mapped, parts_of, samples_of
from evenly.tools.labels import Values, read_labels, right, tensor_of

Loss = Callable[[Any, Any], Any]
# Quantiles of Student's t for 97.5 %, by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 15: 2.13, 20: 2.09}


class Interval(NamedTuple):
    """A difference of two scores of the same samples, positive where the second is better.

    Args:
        mean: the difference.
        low: lower end of its 95 % interval.
        high: upper end.
        number: samples it is from.
    """

    mean: float
    low: float
    high: float
    number: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} (95 % interval {self.low:+.2f} to {self.high:+.2f}, {self.number} samples)"


@dataclass(frozen=True)
class Score:
    """How outputs are scored.

    Args:
        name: in a sentence.
        unit: behind the number.
        up: whether more is better.
        said: how it scores, in words.
        judges: whether it says which of two networks is better; agreement does not.
        values: what each sample scores, more is better.
        scale: from a sample's score to the number shown.
    """

    name: str
    unit: str
    up: bool
    said: str
    judges: bool
    values: Callable[[Sequence[Any], Sequence[Any]], Values]
    scale: float = 1.0

    def shown(self, values: Values) -> float:
        """The number to show."""
        return (1 if self.up else -1) * self.scale * values.mean

    def of(self, outputs: Sequence[Any], batches: Sequence[Any]) -> float:
        """The number to show, from outputs."""
        return self.shown(self.values(outputs, batches))

    def better(self, before: Values, after: Values, strict: float = 1.0, keep: Tensor | None = None) -> Interval:
        """By how much ``after`` is better, in the unit shown, over pairs.

        Args:
            before: what samples scored.
            after: what the same samples score.
            strict: widens the interval, for a look that is not the only one.
            keep: which samples, None: all.
        """
        apart, weight = (after.of - before.of) * self.scale, before.weight
        if keep is not None:
            apart, weight = apart[keep], weight[keep]
        return _interval(apart, weight, strict, bounded=self.scale if self.unit == "points" else 0.0)


def _interval(apart: Tensor, weight: Tensor, strict: float, bounded: float) -> Interval:
    """Mean of paired differences with its interval; NaN counts as a total loss."""
    number = int((weight > 0).sum())
    if number < 2 or not float(weight.sum()):
        return Interval(float("nan"), -math.inf, math.inf, number)
    if not bool(torch.isfinite(apart).all()):
        apart = apart.nan_to_num(nan=-math.inf, posinf=math.inf)
        mean = float(apart.clamp(-1e30, 1e30).mean())
        return Interval(math.copysign(math.inf, mean), *((math.inf,) * 2 if mean > 0 else (-math.inf,) * 2), number)
    mean = float((apart * weight).sum() / weight.sum())
    spread, middle, whole = ((apart - mean) * weight).square().sum(), mean, weight.sum()
    if bounded:  # Agresti and Min, 2005: two more pairs, half of one for each outcome, keep small samples honest
        one = float(whole) / number
        middle = float((apart * weight).sum() / (whole + 2 * one))
        spread = ((apart - middle) * weight).square().sum() + (bounded * one) ** 2 + 2 * (middle * one) ** 2
        whole = whole + 2 * one
    error = math.sqrt(float(spread) * number / (number - 1)) / float(whole)
    reach = strict * _student(number - 1) * error
    return Interval(mean, middle - reach, middle + reach, number)


def _student(freedom: int) -> float:
    return next((t for f, t in sorted(_T.items(), reverse=True) if freedom >= f), 12.71) if freedom < 30 else 1.96


def choose(batches: Sequence[Any], outputs: Sequence[Any], reference: Sequence[Any], loss: Loss | None) -> Score:
    """The score that fits: ``loss``, else what the labels say, else agreement with training form.

    Args:
        batches: what was run.
        outputs: the model's outputs for them in evaluation form.
        reference: in training form.
        loss: ``loss(output, batch)``, less is better.
    """
    if loss is not None:
        return Score("loss", "", False, "your loss", True, lambda o, b: _losses(o, b, loss))
    reading = read_labels(reference, batches)
    if reading.kind:
        try:
            right(reading, outputs[:1], batches[:1])
        except (RuntimeError, ValueError, IndexError) as error:
            reading = reading._replace(kind="", said=f"labels could not be compared with outputs: {error}")
    if reading.kind == "numbers":
        return Score("mean squared error", "", False, reading.said, True, lambda o, b: right(reading, o, b))
    if reading.kind:
        return Score("accuracy", "points", True, reading.said, True, lambda o, b: right(reading, o, b), 100.0)
    return Score(
        "disagreement with training form", "%", False,
        f"agreement with training form, as {reading.said}; it cannot say which form is better", False, _nothing,
    )  # fmt: skip


def _nothing(outputs: Sequence[Any], batches: Sequence[Any]) -> Values:
    return Values(torch.zeros(0), torch.zeros(0))


def disagreement(outputs: Sequence[Any], reference: Sequence[Any]) -> float:
    """Root mean square difference, in percent of the reference's standard deviation; 1000 and all above is 1000."""
    ours = torch.cat([tensor_of(o).double().flatten() for o in outputs])
    theirs = torch.cat([tensor_of(o).double().flatten() for o in reference])
    if ours.shape != theirs.shape:
        return 1000.0
    apart = 100 * float((ours - theirs).square().mean().sqrt() / theirs.std(correction=0).clamp(min=1e-12))
    return apart if apart < 1000 else 1000.0  # NaN is not less than anything


def _losses(outputs: Sequence[Any], batches: Sequence[Any], loss: Loss) -> Values:
    """Minus the loss of parts of each batch, so that an interval has pairs to go by."""
    values, weights = [], []
    for output, batch in zip(outputs, batches, strict=True):
        for piece, of in _pieces(output, batch):
            values.append(-float(loss(piece, of)))
            weights.append(max(samples_of(of), 1))
    return Values(torch.tensor(values, dtype=torch.double), torch.tensor(weights, dtype=torch.double))


def _pieces(output: Any, batch: Any, number: int = 8) -> list[tuple[Any, Any]]:
    """Output and batch cut alike, where every tensor of the output has the batch's samples."""
    total = samples_of(batch)
    lengths: list[int] = []
    mapped(output, lambda t: lengths.append(len(t) if t.ndim else -1) or t)  # type: ignore[func-returns-value]
    loose = isinstance(output, (str, bytes)) or not isinstance(output, (Tensor, Mapping, tuple, list))
    if loose or total < 2 * number or set(lengths) != {total}:
        return [(output, batch)]
    size = total // number
    return list(zip(parts_of(output, size), parts_of(batch, size), strict=True))
