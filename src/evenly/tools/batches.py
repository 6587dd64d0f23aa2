"""One rule for what a batch is and how a model takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]


def feed(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The model's output for a batch.

    A tensor is given as it is, of a tuple or list the first item (what follows are labels), a
    mapping as keywords. ``forward(model, batch)`` overrides the rule. Tensors go to the model's
    device first.
    """
    batch = to_device(batch, device_of(model))
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def take(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    """The first ``limit`` batches, or all.

    Raises:
        ValueError: ``limit`` is not positive.
        TypeError: ``batches`` is one tensor, or cannot be iterated over.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of batches and must be at least 1, got {limit}.")
    if isinstance(batches, Tensor):
        raise TypeError("batches must be an iterable of batches, got one tensor; for a single batch give [batch].")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches (a DataLoader, a list), got {type(batches).__name__}.")
    return islice(iter(batches), limit)


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the model's first parameter or buffer; None without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def to_device(batch: Any, device: torch.device | None) -> Any:
    """The batch with every tensor in it on ``device``; sequences keep their kind, arrays become tensors."""
    if device is None:
        return mapped(batch, lambda t: t)
    return mapped(batch, lambda t: t if t.device == device else t.to(device))


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with ``change`` applied to every tensor (and numpy array) in its tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        return change(torch.as_tensor(batch))
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(item, change) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(item, change) for item in batch)
    return batch


def samples_of(batch: Any) -> int:
    """How many samples: the length of the first tensor's first axis; 0 without tensors."""
    lengths: list[int] = []
    mapped(batch, lambda t: lengths.append(len(t) if t.ndim else 0) or t)  # type: ignore[func-returns-value]
    return lengths[0] if lengths else 0


def parts_of(batch: Any, size: int) -> Sequence[Any]:
    """The batch cut into parts of ``size`` samples; a shorter rest joins the last part."""
    total = samples_of(batch)
    starts = range(0, max(total - size, 0) + 1, size) if size < total else range(1)
    stops = [*starts[1:], total]
    return [
        mapped(batch, lambda t, a=a, b=b: t[a:b] if t.ndim and len(t) == total else t)  # type: ignore[misc]
        for a, b in zip(starts, stops, strict=True)
    ]
