"""What is saved for backward: a strategy keeps it in forward and recovers it in backward.

The input is needed for xhat (dweight, and dx through the statistics) and for the slope. With given
statistics and a fixed weight only the slope is, and where it can be told from the output, or there
is none, the input need not outlive the forward pass.

With an invertible activation the input itself can be had back from the output,
``xhat = (activation_inverse(y) - bias) / weight``. Rounding of ``y`` comes back magnified by
``1 + |bias / weight|``, which is why weights that are small beside their bias make the layer keep
its input, as if not asked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenly.backends import reference
from evenly.backends.activations import slope_of_output
from evenly.backends.kernel import Kernel
from evenly.backends.memory import in_order
from evenly.backends.records import Given, Kept, Tensors
from evenly.nn.call import Call

# The restored xhat is then off by at most 17 roundings of the output.
_LARGEST_RATIO = 16.0
# Half precision keeps its input: 8 to 11 bits of an output are too few to restore one.
_PRECISE = (torch.float32, torch.float64)


class Recovered(NamedTuple):
    """What backward works with.

    Args:
        dy: gradient of the output, or of what the kernel's formula gives.
        x: the input, or a stand-in where none is needed.
        kernel: the kernel whose formula it is.
        tensors: weight, bias and mask.
        kept: statistics and slopes.
    """

    dy: Tensor
    x: Tensor
    kernel: Kernel
    tensors: Tensors
    kept: Kept


class Input:
    """Saves the input; serves everything."""

    def keep(self, ctx: Any, x: Tensor, y: Tensor, tensors: Tensors, kept: Kept, call: Call) -> None:
        """Save the input, what the formula reads, and what was measured."""
        self._keep(ctx, x, tensors, kept, call)

    def _keep(self, ctx: Any, saved: Tensor | None, tensors: Tensors, kept: Kept, call: Call) -> None:
        """Save one tensor of the input's shape (or none), what the formula reads, and what was measured."""
        weight, bias, residual, mask = tensors
        mean, rstd, count, slope, measured, _ = kept
        if residual is None and mask is None and isinstance(count, int):
            ctx.save_for_backward(saved, weight, bias, mean, rstd)
        else:
            # A residual matters to the slope's own slope only where the activation is curved.
            curved = residual if slope is not None and call.plan.norm.activation.curved else None
            counts = count if isinstance(count, Tensor) else None
            ctx.save_for_backward(saved, weight, bias, mean, rstd, slope if curved is None else curved, mask, counts)
        ctx.kept = self, call, count if isinstance(count, int) else None, measured

    def recover(self, ctx: Any, dy: Tensor) -> Recovered:
        """What was saved, as backward works with it."""
        saved, tensors, kept, call = _unpacked(ctx)
        assert saved is not None
        return Recovered(dy, saved, call.plan.kernel, tensors, kept)


class Output(Input):
    """Saves the output of an activation whose slope it tells: given statistics, no gradient of the weight."""

    def keep(self, ctx: Any, x: Tensor, y: Tensor, tensors: Tensors, kept: Kept, call: Call) -> None:
        """Save the output."""
        self._keep(ctx, y, tensors._replace(residual=None), kept._replace(slope=None), call)

    def recover(self, ctx: Any, dy: Tensor) -> Recovered:
        """The gradient before the activation, which is done with; any input will do."""
        y, tensors, kept, call = _unpacked(ctx)
        assert y is not None
        dy = dy * slope_of_output(y, call.plan.norm.activation)
        return Recovered(dy, _stand_in(dy, call), call.plan.linear, tensors, kept)


class Nothing(Input):
    """Saves neither: given statistics, no gradient of the weight, no activation."""

    def keep(self, ctx: Any, x: Tensor, y: Tensor, tensors: Tensors, kept: Kept, call: Call) -> None:
        """Save what the formula reads besides the input."""
        self._keep(ctx, None, tensors._replace(residual=None), kept, call)

    def recover(self, ctx: Any, dy: Tensor) -> Recovered:
        """Any input will do."""
        _, tensors, kept, call = _unpacked(ctx)
        return Recovered(dy, _stand_in(dy, call), call.plan.kernel, tensors, kept)


class Restored(Input):
    """Saves the output, from which the input is had back (``inplace=True``)."""

    def keep(self, ctx: Any, x: Tensor, y: Tensor, tensors: Tensors, kept: Kept, call: Call) -> None:
        """Save the output."""
        self._keep(ctx, y, tensors, kept, call)

    def recover(self, ctx: Any, dy: Tensor) -> Recovered:
        """The input less its mean."""
        if torch.is_grad_enabled():
            raise RuntimeError("second derivatives need the input itself; construct the layer with inplace=False.")
        y, tensors, kept, call = _unpacked(ctx)
        assert y is not None
        definition = reference.Kernel(call.plan.norm, call.plan.order)
        x = definition.restore(y, tensors, kept.rstd)
        return Recovered(dy, x, call.plan.kernel, tensors, kept._replace(mean=torch.zeros_like(kept.mean)))


INPUT, OUTPUT, NOTHING, RESTORED = Input(), Output(), Nothing(), Restored()


def strategy(x: Tensor, tensors: Tensors, call: Call, *, weight_needs_gradient: bool) -> Input:
    """What must outlive this forward pass."""
    activation = call.plan.norm.activation
    if isinstance(call.statistics, Given) and not weight_needs_gradient:
        if activation.name is None:
            return NOTHING
        if activation.name in ("relu", "relu6") or (activation.invertible and x.dtype in _PRECISE):
            return OUTPUT
        return INPUT
    if not call.inplace or isinstance(call.statistics, Given):
        return INPUT
    alone = tensors.residual is None and tensors.mask is None
    return RESTORED if alone and x.dtype in _PRECISE and _restorable(x, tensors, call) else INPUT


def _restorable(x: Tensor, tensors: Tensors, call: Call) -> bool:
    """Whether backward can restore the input from the output to rounding; one number is read from the device."""
    weight, bias = tensors.weight, tensors.bias
    if not (call.plan.norm.activation.invertible and call.plan.norm.centered):
        return False
    if weight is None:
        return bias is None or bool((bias.detach().abs() <= _LARGEST_RATIO).all())
    size = weight.detach().abs()
    fits = size >= torch.finfo(x.dtype).tiny ** 0.5
    if bias is not None:
        fits &= bias.detach().abs() <= _LARGEST_RATIO * size
    return bool(fits.all())


def _unpacked(ctx: Any) -> tuple[Tensor | None, Tensors, Kept, Call]:
    """What any strategy saved: one tensor of the input's shape, the tensors, statistics and slopes, the call."""
    saved, weight, bias, mean, rstd, *rest = ctx.saved_tensors
    _, call, count, measured = ctx.kept
    if not rest:
        return saved, Tensors(weight, bias), Kept(mean, rstd, count, None, measured), call
    slope, mask, counts = rest
    kept = Kept(mean, rstd, counts if count is None else count, slope, measured)
    return saved, Tensors(weight, bias, None, mask), kept, call


def _stand_in(dy: Tensor, call: Call) -> Tensor:
    """Something of the input's shape and layout, where its numbers do not matter."""
    return torch.zeros_like(dy) if torch.is_grad_enabled() else in_order(dy, call.plan.order)
