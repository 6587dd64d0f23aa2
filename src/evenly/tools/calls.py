"""How a model takes a batch: the rule, or the first other usual way that works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools.batches import Forward, device_of, feed, mapped, to_device
from evenly.tools.labels import LABEL_KEYS
from evenly.tools.sites import preserved

_INPUT_KEYS = ("pixel_values", "image", "images", "input", "inputs", "x", "data", "img")


def settle(model: nn.Module, batch: Any, forward: Forward | None) -> tuple[Forward, str]:
    """The call that works for a batch, in evaluation form, and how to write it.

    Raises:
        ValueError: none does; with what the first one raised.
    """
    if forward is not None:
        return forward, "forward(model, batch)"
    errors: list[str] = []
    with preserved(model), torch.no_grad():
        with suppress(NotImplementedError):  # an exported program
            model.eval()
        for said, call in _ways(batch):
            try:
                call(model, to_device(batch, device_of(model)))
            except Exception as error:
                errors.append(f"{said} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            else:
                return call, said
    raise ValueError(f"{errors[0]}; say how a batch is given with forward= (--forward MODULE:FUNCTION).")


def _ways(batch: Any) -> Iterator[tuple[str, Callable[[nn.Module, Any], Any]]]:
    if isinstance(batch, Mapping):
        yield "model(**batch)", lambda m, b: m(**b)
        rest = [key for key in batch if key not in LABEL_KEYS]
        if len(rest) < len(batch):
            yield "model(**batch without labels)", lambda m, b: m(**{key: b[key] for key in rest})
        for key in (k for k in _INPUT_KEYS if k in batch):
            yield f"model(batch[{key!r}])", partial(_with_key, key)
        return
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    yield "model(batch[0])" if first is not batch else "model(batch)", feed
    if isinstance(first, (tuple, list)):
        yield "model(*batch[0])", lambda m, b: m(*b[0])
    if isinstance(batch, (tuple, list)) and len(batch) > 2:
        yield "model(*batch[:-1])", lambda m, b: m(*b[:-1])
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        yield "model(*batch)", lambda m, b: m(*b)


def _with_key(key: str, model: nn.Module, batch: Any) -> Any:
    return model(batch[key])


def with_input(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with ``change`` applied to its floating-point input, labels left alone."""

    def floating(t: Tensor) -> Tensor:
        return change(t) if t.is_floating_point() and t.ndim > 1 else t

    if isinstance(batch, Mapping):
        return {k: v if k in LABEL_KEYS else mapped(v, floating) for k, v in batch.items()}
    if isinstance(batch, tuple) and not hasattr(batch, "_fields") and batch:
        return (mapped(batch[0], floating), *batch[1:])
    if isinstance(batch, list) and batch:
        return [mapped(batch[0], floating), *batch[1:]]
    return mapped(batch, floating)
