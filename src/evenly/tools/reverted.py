"""Plain torch for the time being, for tools that look up exact types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evenly.nn.tracked import adopt
from evenly.tools import fuse as fusing
from evenly.tools.pairs import OURS, beyond_torch, origin_of

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def reverted(model: Model) -> Iterator[Model]:
    """A model whose norms are torch.nn's inside the ``with``, and evenly's again after it.

    Classes are swapped in place: modules, parameters, buffers and hooks stay the very objects they
    are, so optimizers and whoever holds them go on. Fused blocks run their own forward. It nests,
    and is undone after an exception. Other threads see the model change: it is for one at a time.
    While it lasts torch's rules hold: a NaN enters the statistics, ``.half()`` narrows them.

    Args:
        model: any module; a norm by itself too.

    Yields:
        ``model``.

    Raises:
        ValueError: a layer has no counterpart in torch.nn (an activation of its own, frozen
            statistics, ghost batches, any rank); nothing is changed then.

    Example:
        >>> from torch import nn
        >>> import evenly
        >>> model = nn.Sequential(nn.Linear(3, 4), evenly.BatchNorm1d(4))
        >>> with evenly.reverted(model):
        ...     type(model[1]) is nn.BatchNorm1d
        True
        >>> type(model[1]) is evenly.BatchNorm1d
        True
    """
    kinds: tuple[Any, ...] = OURS
    ours: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if isinstance(m, kinds)]
    for name, module in ours:
        changed = beyond_torch(module) if type(module) in OURS else ["a subclass, or lazy"]
        if changed:
            where = f"{name or 'the model'} ({type(module).__name__})"
            raise ValueError(
                f"{where} has no counterpart in torch.nn: {', '.join(changed)}; "
                'set that aside first, for instance by evenly.convert(model, norm="batch") or evenly.unfreeze(model).'
            )
    blocks = [(block, type(block), fusing.fused_from(block)) for block in model.modules()]
    classes: list[tuple[Any, Any]] = [(module, type(module)) for _, module in ours]
    plain = {cls: origin_of(module) for module, cls in classes}
    wide: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for block, _, _ in blocks:
            fusing.unfuse(block)
        for module, cls in classes:
            module.__class__ = plain[cls]
            wide += _narrowed(module)
        yield model
    finally:
        for tensor, before, during in wide:
            tensor.data = before if torch.equal(tensor.data, during) else tensor.data.to(before.dtype)
        for module, cls in classes:
            if type(module) is plain[cls]:
                adopt(module, cls)
        for block, fused, origin in blocks:
            if origin is not None and type(block) is origin:
                block.__class__ = fused


def _narrowed(module: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Running statistics in the weight's half precision, as torch expects them: buffer, old and new values."""
    weight, changed = module._parameters.get("weight"), []
    if weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
        for buffer in (module._buffers.get("running_mean"), module._buffers.get("running_var")):
            if buffer is not None and buffer.dtype is not weight.dtype:
                before, during = buffer.data, buffer.data.to(weight.dtype)
                buffer.data = during
                changed.append((buffer, before, during.clone()))
    return changed
