"""Statistics of shifted data at test time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from evenly.tools.batches import Forward
from evenly.tools.probe import Subject
from evenly.tools.recalibrate import measured, set_statistics

Model = TypeVar("Model", bound=nn.Module)


def adapt(
    model: Model,
    batches: Iterable[Any],
    *,
    blend: float = 1.0,
    forward: Forward | None = None,
    limit: int | None = None,
    process_group: Any = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """Move the running statistics of every batch norm towards those of other data.

    ``running <- (1 - blend) * running + blend * measured``, for mean and variance alike. Labels
    are not needed. With few samples a blend below 1 keeps the noise of their statistics small;
    `evenly.diagnose` tries several blends and shows what each restores.

    Args:
        model: changed in place: only the running statistics.
        batches: data of the new kind (as for `evenly.recalibrate`).
        blend: share of the new statistics, 0 to 1.
        forward: ``forward(model, batch)`` for batches that need another call.
        limit: at most so many batches.
        process_group: processes to share with; None: all, where torch.distributed runs.
        say: takes lines of text, such as ``print``: progress, and how far each layer moved.

    Returns:
        ``model``.

    Raises:
        ValueError: ``blend`` is outside 0 to 1; no batches; no batch norm.

    Source:
        Schneider et al., 2020, https://arxiv.org/abs/2006.16971

    Example:
        >>> import torch
        >>> from torch import nn
        >>> norm = adapt(nn.BatchNorm1d(1), [torch.tensor([[1.0], [3.0]])], blend=0.5)
        >>> norm.running_mean, norm.running_var
        (tensor([1.]), tensor([1.5000]))
    """
    if not 0 <= blend <= 1:
        raise ValueError(f"blend is the share of the new statistics, 0 to 1, got {blend}.")
    subject = Subject(model, forward)
    for move in set_statistics(subject.sites, measured(subject, batches, limit, process_group, say), blend=blend):
        if say is not None:
            say(str(move))
    return model
