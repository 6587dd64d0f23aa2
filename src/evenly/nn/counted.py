"""An operator that tells, when a graph runs, whether its batch counts."""

from __future__ import annotations

import torch
from torch import Tensor

from evenly.nn.situation import recomputing


@torch.library.custom_op("evenly::counts", mutates_args=())
def counts(anchor: Tensor) -> Tensor:
    """False while activation checkpointing recomputes (0-d bool); ``anchor`` gives the device."""
    return torch.tensor(not recomputing(), device=anchor.device)


@counts.register_fake
def _(anchor: Tensor) -> Tensor:
    return anchor.new_empty((), dtype=torch.bool)
