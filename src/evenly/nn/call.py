"""What a call asks for besides its tensors."""

from __future__ import annotations

from typing import NamedTuple

from evenly.backends.kernel import Sharing
from evenly.nn.plan import Plan, Statistics


class Call(NamedTuple):
    """What a call asks for besides its tensors.

    Args:
        plan: how the input is read, and what computes it.
        statistics: what is given, or the buffers that what is measured enters, or None.
        sharing: the processes that share statistics, or None.
        inplace: whether backward may restore the input from the output (see `evenly.nn.kept`).
    """

    plan: Plan
    statistics: Statistics = None
    sharing: Sharing | None = None
    inplace: bool = False
