"""torch.fx: a layer of ours stays one leaf, as torch.nn's are.

A tracer calls leaf what lives in ``torch.nn``; ours do not, so their forward is entered, finds a
proxy in place of a tensor, and writes the leaf itself.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy


def traced(input: object) -> bool:
    """Whether ``input`` stands for a tensor in a torch.fx trace."""
    return isinstance(input, Proxy)


def leaf(module: nn.Module, input: Any, **extras: Any) -> Tensor:
    """One ``call_module`` node for ``module``, with those extras that were given."""
    path = input.tracer.path_of_module(module)
    given = {name: value for name, value in extras.items() if value is not None}
    node: Tensor = input.tracer.create_proxy("call_module", path, (input,), given)
    return node
