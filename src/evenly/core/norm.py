"""What a norm is, apart from the tensors of a call."""

from __future__ import annotations

from dataclasses import dataclass

from evenly.core.activation import IDENTITY, Activation
from evenly.core.partition import Partition


@dataclass(frozen=True)
class Norm:
    """The one formula of the family with all that is constant in it.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    Args:
        partition: which elements share statistics, over the input's memory order.
        eps: added to the variance.
        activation: applied last.
        centered: False keeps the mean at 0 (RMS norm).
        zero_masked: whether the output is 0 where a mask is.

    Example:
        >>> Norm(Partition.of_batch((32, 64, 56, 56)), eps=1e-5).partition.sets
        64
    """

    partition: Partition
    eps: float
    activation: Activation = IDENTITY
    centered: bool = True
    zero_masked: bool = False
