"""Names of an older version: `evenly.nn.layer` and `evenly.core.activation` have them now."""

from evenly.core.activation import Activation
from evenly.nn.layer import Fused

activation_of = Activation.of

__all__ = ["Fused", "activation_of"]
