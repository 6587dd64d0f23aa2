"""Keras's activations that a norm can apply itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import activations

from evenly.core.activation import IDENTITY, Activation

# Keras's defaults, where they differ from torch's: the slope of leaky_relu.
_FUSED = {
    activations.linear: IDENTITY,
    activations.relu: Activation("relu"),
    activations.relu6: Activation("relu6"),
    activations.leaky_relu: Activation("leaky_relu", 0.2),
    activations.elu: Activation("elu", 1.0),
    activations.silu: Activation("silu"),
    activations.gelu: Activation("gelu"),
}


def fusible(function: Callable[[Any], Any]) -> bool:
    """Whether the norm applies all of the function itself.

    Example:
        >>> fusible(activations.relu), fusible(activations.tanh)
        (True, False)
    """
    return split(function)[1] is None


def split(function: Callable[[Any], Any]) -> tuple[Activation, Callable[[Any], Any] | None]:
    """The activation to fuse into the norm, and the function to call after it.

    Example:
        >>> split(activations.get("swish"))
        (Activation(name='silu', arg=0.0), None)
    """
    try:
        return _FUSED[function], None
    except (KeyError, TypeError):  # unknown, or a callable without a hash
        return IDENTITY, function
