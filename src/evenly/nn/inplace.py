"""Saving the output in place of the input: the memory of one tensor for one restoring sweep.

With an invertible activation the normalised input can be had back from the output,
``xhat = (activation_inverse(y) - bias) / weight``, so that the input need not outlive the
forward pass. Rounding of ``y`` comes back magnified by ``1 + |bias / weight|``, which is why
weights that are small beside their bias make the layer keep its input, as if not asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenly import backends
from evenly.backends import reference
from evenly.nn.normalize import Call

# The restored xhat is then off by at most 17 roundings of the output.
_LARGEST_RATIO = 16.0


def restorable(x: Tensor, call: Call, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether backward can restore the input from the output to rounding; one number is read from the device."""
    if not (call.activation.invertible and call.centered):
        return False
    if weight is None:
        return bias is None or bool((bias.detach().abs() <= _LARGEST_RATIO).all())
    size = weight.detach().abs()
    fits = size >= torch.finfo(x.dtype).tiny ** 0.5
    if bias is not None:
        fits &= bias.detach().abs() <= _LARGEST_RATIO * size
    return bool(fits.all())


def restore(y: Tensor, call: Call, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The input less its mean, from the output; laid out as ``y``."""
    steps = backends.choose(y)
    steps = steps if hasattr(steps, "restore") else reference
    x: Tensor = steps.restore(y, call.partition, rstd, weight, bias, call.activation)
    return x
