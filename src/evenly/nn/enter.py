"""How measured statistics enter the running ones, wherever the call finds itself."""

from __future__ import annotations

import torch

from evenly.backends.running import Running, update
from evenly.core.moments import Moments
from evenly.nn.situation import in_graph, may_write, recomputing


def enter(running: Running, moments: Moments) -> None:
    """Enter statistics into the running ones, unless this forward must not: a recompute, a transform.

    A recompute runs the operators of the first pass, whose results selective checkpointing may have
    kept, and leaves out the write alone.
    """
    if in_graph():
        from evenly.nn.counted import counts  # registers an operator, which takes a while

        update(running, moments, live=counts(moments.mean))
    elif may_write(running):
        again = not torch.compiler.is_compiling() and recomputing()
        live = torch.full((), not again, dtype=torch.bool, device=running.mean.device)
        update(running, moments, live=live)
