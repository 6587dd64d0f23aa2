"""Why is eval() worse than train()? A model examined at work, and its remedies tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from evenly.tools import scores
from evenly.tools.batches import Forward
from evenly.tools.calls import settle
from evenly.tools.diagnosis import Diagnosis
from evenly.tools.examination import Examination
from evenly.tools.parts import Source
from evenly.tools.probe import Subject


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    loss: scores.Loss | None = None,
    limit: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say why a model evaluates worse than it trains, and what restores it.

    The model's own ``train()`` and ``eval()`` are run, and each norm is seen at the call that
    normalises: whose statistics it used, and of what. Norms that do the same in both forms have no
    gap. The others are compared in evaluation form (dropout off) with the statistics of the batch
    and with the running ones. Remedies are measured on one part of the batches, chosen on another
    and confirmed on a third. Afterwards the model is as before: weights, statistics, gradients,
    modes and random state.

    Args:
        model: any torch model; plain torch.nn norms are welcome.
        batches: an iterable of batches like those of training: a tensor, a tuple that begins with
            the input and ends with the label, or a mapping of keywords with ``labels`` in it.
        forward: ``forward(model, batch)`` for batches that need another call.
        loss: ``loss(output, batch)``, less is better. Default: accuracy where labels are classes,
            mean squared error where they are numbers; without labels the disagreement with training
            form, which never says which form is better.
        limit: how many batches to use at most. Default: 16 or 512 samples, whichever is more, and
            on until the interval of the best trial decides.
        say: takes lines of text, such as ``print``: progress, and each finding as it is found.

    Returns:
        The diagnosis: ``findings``, ``trials``, ``examined``, ``table()``, ``to_html(path)``, ``fix(path)``.

    Raises:
        ValueError: no batches, or none of the usual calls works with them.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.randn(256, 3)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, momentum=0.9), nn.Linear(8, 2))
        >>> _ = [model(batch) for batch in x.split(64)]
        >>> [f.rule for f in diagnose(model, x.split(64)).findings if f.level == "warning"]
        ['momentum-inverted']
    """
    examination = Examination(Subject(model, forward), Source(batches, limit), loss, say)
    examination.stored()
    given = examination.begin()
    if examination.useless:
        return examination.result()
    examination.subject.forward, examination.said = settle(model, given[0], forward)
    examination.at_work(given, endless=not hasattr(batches, "__len__") and limit is None)
    return examination.result()
