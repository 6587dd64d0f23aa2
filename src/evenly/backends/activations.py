"""The activations in torch's operators: each itself, its slope, and its slope told from its output.

Names, parameters and what backward needs of each stand in `evenly.core.activation.KINDS`; here is
one row for each of them, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evenly.core.activation import Activation


class Formula(NamedTuple):
    """An activation as functions of a tensor and the activation's argument.

    Args:
        apply: the activation.
        slope: its derivative; at a kink torch's choice (relu'(0) = 0).
        slope_of_output: its derivative told from the output; None where that cannot be done.
        invert: the input from the output; None where that cannot be done.
    """

    apply: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]
    slope_of_output: Callable[[Tensor, float], Tensor] | None = None
    invert: Callable[[Tensor, float], Tensor] | None = None


def _silu_slope(z: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor, _: float) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(z * 0.7071067811865476))
    return cdf + z * torch.exp(-0.5 * z * z) * 0.3989422804014327


def _elu_inverse(y: Tensor, alpha: float) -> Tensor:
    """A saturated ELU gives the input of its largest distinguishable slope."""
    least = -1 + torch.finfo(y.dtype).eps
    return torch.where(y > 0, y, torch.log1p((y / alpha).clamp(least, 0)))


def _leaky_slope(z: Tensor, low: float) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), low)


_FORMULAS: dict[str | None, Formula] = {
    None: Formula(lambda z, _: z, lambda z, _: torch.ones_like(z), None, lambda y, _: y),
    "relu": Formula(
        lambda z, _: F.relu(z), lambda z, _: (z > 0).to(z.dtype), lambda y, _: (y > 0).to(y.dtype)
    ),
    "relu6": Formula(
        lambda z, _: F.relu6(z),
        lambda z, _: ((z > 0) & (z < 6)).to(z.dtype),
        lambda y, _: ((y > 0) & (y < 6)).to(y.dtype),
    ),
    "leaky_relu": Formula(
        lambda z, low: F.leaky_relu(z, low),
        _leaky_slope,
        _leaky_slope,
        lambda y, low: torch.where(y > 0, y, y / low),
    ),
    "elu": Formula(
        lambda z, alpha: F.elu(z, alpha),
        lambda z, alpha: torch.where(z > 0, torch.ones_like(z), alpha * torch.exp(z.clamp(max=0))),
        lambda y, alpha: torch.where(y > 0, torch.ones_like(y), y + alpha),
        _elu_inverse,
    ),
    "silu": Formula(lambda z, _: F.silu(z), _silu_slope),
    "gelu": Formula(lambda z, _: F.gelu(z), _gelu_slope),
}  # fmt: skip


def apply_activation(z: Tensor, activation: Activation) -> Tensor:
    """The activation itself, by torch's operators."""
    return _FORMULAS[activation.name].apply(z, activation.arg)


def activation_slope(z: Tensor, activation: Activation) -> Tensor:
    """The derivative of the activation at ``z``; at a kink torch's choice (relu'(0) = 0)."""
    return _FORMULAS[activation.name].slope(z, activation.arg)


def slope_of_output(y: Tensor, activation: Activation) -> Tensor:
    """The slope from the output of ReLU, ReLU6 or an invertible activation, in ``y``'s type."""
    formula = _FORMULAS[activation.name].slope_of_output
    if formula is None:
        raise ValueError(f"the slope of {activation.name!r} cannot be told from its output.")
    return formula(y, activation.arg)


def invert(y: Tensor, activation: Activation) -> Tensor:
    """The input of an invertible activation from its output."""
    formula = _FORMULAS[activation.name].invert
    if formula is None:
        raise ValueError(f"{activation.name!r} has no inverse.")
    return formula(y, activation.arg)


def slope_of_bits(bits: Tensor, numel: int, activation: Activation, dtype: torch.dtype) -> Tensor:
    """The slopes of a piecewise linear activation from one bit an element, ``numel`` numbers in memory order.

    Bit ``k % 8`` of byte ``k // 8`` is set where element ``k`` has slope 1.
    """
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    on = ((bits[:, None] >> shifts) & 1).reshape(-1)[:numel]
    low = activation.arg if activation.name == "leaky_relu" else 0.0
    return torch.where(on.bool(), 1.0, low).to(dtype)


def bits_of_slope(z_flat: Tensor, activation: Activation) -> Tensor:
    """One bit an element, set where a piecewise linear activation has slope 1; ``z_flat`` in memory order."""
    on = (activation_slope(z_flat, activation) == 1).reshape(-1)
    on = F.pad(on, (0, -on.numel() % 8)).reshape(-1, 8).to(torch.uint8)
    return (on << torch.arange(8, device=z_flat.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
