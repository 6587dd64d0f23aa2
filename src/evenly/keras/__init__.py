"""Batch and group normalization for Keras 3, in Keras's words, on its torch, JAX and TensorFlow backends.

Importing this module imports Keras; nothing else in evenly does.
"""

try:
    import keras  # noqa: F401  # asked for first, so that its absence is explained once
except ModuleNotFoundError as error:
    if error.name != "keras":  # Keras is there, and says itself what its backend lacks
        raise
    raise ImportError("evenly.keras needs Keras 3; install it with: pip install 'evenly[keras]'") from None

from evenly.keras.batchnorm import BatchNormalization
from evenly.keras.conversion import convert
from evenly.keras.groupnorm import GroupNormalization

__all__ = ["BatchNormalization", "GroupNormalization", "convert"]
