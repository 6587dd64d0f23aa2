"""Which path a call takes: the table of situations, and nothing else.

| situation | path |
|---|---|
| plain tensors, a gradient is needed | `evenly.nn.eager`: one autograd function around a kernel |
| plain tensors, no gradient | the kernel |
| torch.compile builds a graph | `evenly.nn.compiled`: operators that a graph can hold |
| torch.func, forward mode, subclasses, meta, dispatch modes | `evenly.nn.differentiable`: the definition |

Before it come `evenly.nn.exported` (torch's own operators, where what is written down must run
without evenly) and torch.fx (one leaf, `evenly.nn.layer`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenly.backends.guard import UnreadableError, all_ordinary
from evenly.backends.records import Tensors
from evenly.backends.running import Running
from evenly.nn import differentiable, eager
from evenly.nn.call import Call
from evenly.nn.situation import in_graph, recomputing, undisturbed


def normalize(x: Tensor, tensors: Tensors, call: Call) -> Tensor:
    """``activation(weight * (x - mean) * rstd + bias + residual)``; the one formula of the family.

    Args:
        x: dense in memory, in the plan's order.
        tensors: weight and bias, shape ``(channels,)``; residual, of ``x``'s shape and type; mask, flat.
        call: what is asked for.
    """
    if undisturbed() and (call.plan.kernel.guards or all_ordinary((x, *tensors))):
        try:
            return _eager(x, tensors, call)
        except UnreadableError:  # nothing was written yet
            pass
    if call.sharing is None and in_graph():
        from evenly.nn import compiled  # registers operators, which takes a while

        return compiled.normalize(x, tensors, call)
    return differentiable.normalize(x, tensors, call)


def _eager(x: Tensor, tensors: Tensors, call: Call) -> Tensor:
    weight, bias, residual, mask = tensors
    if isinstance(call.statistics, Running) and recomputing():
        call = call._replace(statistics=None)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return eager.apply(x, weight, bias, residual, mask, call)
    return eager.without_gradient(x, tensors, call)
