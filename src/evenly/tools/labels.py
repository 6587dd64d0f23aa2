"""Labels as people write them, brought to one form: what is right, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly.tools.batches import mapped

LABEL_KEYS = ("labels", "label", "targets", "target", "y", "mask", "masks", "class", "classes")


class Values(NamedTuple):
    """What each sample scores.

    Args:
        of: the samples' scores, shape ``(samples,)``, float64.
        weight: how many labels stand behind each.
    """

    of: Tensor
    weight: Tensor

    @property
    def mean(self) -> float:
        """Over all labels."""
        total = float(self.weight.sum())
        return float((self.of * self.weight).sum()) / total if total else float("nan")


class Reading(NamedTuple):
    """How labels are read.

    Args:
        kind: ``"classes"``, ``"yes or no"``, ``"numbers"`` or ``""`` where they cannot be.
        said: in words, for the result; why not, where they are not used.
        offset: the first class's number.
        ignored: a number that marks what does not count, or None.
        axis: of the classes in the output.
    """

    kind: str
    said: str
    offset: int = 0
    ignored: int | None = None
    axis: int = 1


def label_of(batch: Any) -> Tensor | None:
    """A batch's label: the last tensor of a tuple, or what a mapping has under a usual name."""
    found: Any = None
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[-1]
    if found is not None and not isinstance(found, Tensor) and hasattr(found, "__array__"):
        found = torch.as_tensor(found)
    return found if isinstance(found, Tensor) and found.ndim else None


def tensor_of(output: Any) -> Tensor:
    """The output itself, its ``logits``, or the first tensor in it that is not a single number."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    found: list[Tensor] = []
    mapped(output, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    whole = [t for t in found if t.ndim]
    if whole:
        return whole[0]
    raise TypeError(f"the model returns {type(output).__name__}; give forward= that returns a tensor, or loss=.")


def read_labels(outputs: Sequence[Any], batches: Sequence[Any]) -> Reading:
    """How the labels of all batches are to be read, from what the outputs are."""
    labels = [label_of(batch) for batch in batches]
    if any(label is None for label in labels):
        return Reading("", "the batches hold no labels")
    try:
        logits = [tensor_of(output) for output in outputs]
    except TypeError as error:
        return Reading("", str(error))
    pairs = [(o, _squeezed(y, o)) for o, y in zip(logits, labels, strict=True) if y is not None]
    output, label = pairs[0]
    if len(output) != len(label):
        return Reading("", f"{len(label)} labels do not belong to {len(output)} outputs")
    every = torch.cat([y.reshape(-1).cpu() for _, y in pairs])
    axis = _class_axis(output, label)
    if axis is not None and not label.is_floating_point():
        return _classes(every, output.shape[axis], axis)
    if output.shape == label.shape and output.ndim > 1 and output.shape[1] > 1 and _one_hot(label):
        return Reading("classes", "accuracy of the largest output against one-hot labels")
    if output.numel() == label.numel():
        if set(every.unique().tolist()) <= {0, 1}:
            return Reading("yes or no", "accuracy of one logit (above 0, or above one half where all outputs are "
                           "between 0 and 1) against labels of 0 and 1")  # fmt: skip
        if label.is_floating_point():
            return Reading("numbers", "mean squared error, as the labels are numbers; give loss= for another")
    shapes = f"outputs of shape {tuple(output.shape)}, labels of {label.dtype} and shape {tuple(label.shape)}"
    return Reading("", f"how to score was not told from {shapes}; give loss=")


def _squeezed(label: Tensor, output: Tensor) -> Tensor:
    """Labels of shape (N, 1, ...) without the 1, where the output has classes there."""
    if label.ndim == output.ndim and label.ndim > 1 and label.shape[1] == 1 and output.shape[1] > 1:
        label = label.squeeze(1)
    return label


def _class_axis(output: Tensor, label: Tensor) -> int | None:
    if output.ndim == label.ndim + 1 and output.shape[1] > 1 and output.shape[2:] == label.shape[1:]:
        return 1
    if output.ndim == label.ndim + 1 and output.shape[-1] > 1 and output.shape[:-1] == label.shape:
        return output.ndim - 1
    return None


def _classes(every: Tensor, number: int, axis: int) -> Reading:
    values = every.unique()
    outside = values[(values < 0) | (values >= number)]
    if not len(outside):
        return Reading("classes", "accuracy", axis=axis)
    if int(values.min()) == 1 and int(values.max()) == number:
        return Reading("classes", f"accuracy, classes counted from 1 to {number}", 1, axis=axis)
    if len(outside) == 1:
        mark = int(outside)
        return Reading("classes", f"accuracy, without the label {mark}, which marks what does not count", 0, mark, axis)
    return Reading("", f"labels run from {int(values.min())} to {int(values.max())}, the outputs have {number} classes")


def _one_hot(label: Tensor) -> bool:
    return set(label.unique().tolist()) <= {0, 1} and bool((label.sum(1) == 1).all())


def right(reading: Reading, outputs: Sequence[Any], batches: Sequence[Any]) -> Values:
    """What each sample scores: the share of its labels met, or minus its squared error."""
    values, weights = [], []
    for output, batch in zip(outputs, batches, strict=True):
        label = label_of(batch)
        assert label is not None
        met, counts = _met(reading, tensor_of(output).float(), label.cpu())
        met, counts = met.double().reshape(len(met), -1), counts.double().reshape(len(counts), -1)
        weight = counts.sum(1)
        values.append(torch.where(weight > 0, (met * counts).sum(1) / weight.clamp(min=1), 0))
        weights.append(weight)
    return Values(torch.cat(values), torch.cat(weights))


def _met(reading: Reading, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels are met (or minus the error), and which count."""
    if reading.kind == "classes":
        if label.shape == output.shape:
            label = label.argmax(1)
        label = _squeezed(label, output).long() - reading.offset
        counts = torch.ones_like(label) if reading.ignored is None else label != reading.ignored
        # argmax of NaN is a class like any other: it must not be taken for an answer.
        good = torch.isfinite(output).all(reading.axis)
        return (output.argmax(reading.axis) == label) & good, counts
    label = label.reshape(output.shape).float()
    if reading.kind == "numbers":
        return -(output - label).square(), torch.ones_like(label)
    between = bool(((output >= 0) & (output <= 1)).all())
    return ((output > (0.5 if between else 0.0)) == (label > 0.5)) & torch.isfinite(output), torch.ones_like(label)
