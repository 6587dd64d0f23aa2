"""Group normalization as a Keras layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


@keras.saving.register_keras_serializable("evenly")
class GroupNormalization(keras.layers.GroupNormalization):  # type: ignore[misc]  # Keras has no types
    """Keras's GroupNormalization, with accurate statistics on the torch backend and a fused activation.

    ``y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)``, with one mean and biased
    variance per sample and group of channels. Arguments, defaults and weights are
    keras.layers.GroupNormalization's.

    Args:
        groups: how many groups; divides the channels (-1: one per channel).
        axis: the channel axis.
        epsilon: added to the variance.
        center, scale, beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer,
            beta_constraint, gamma_constraint: as in `BatchNormalization`.
        activation: as in `BatchNormalization`.
        **kwargs: of every Keras layer.

    Source:
        Wu and He, 2018, https://arxiv.org/abs/1803.08494

    Example:
        >>> import numpy as np
        >>> tuple(GroupNormalization(2)(np.ones((4, 8, 8, 6), "float32")).shape)
        (4, 8, 8, 6)
    """

    def __init__(self, *args: Any, activation: str | Callable[[Any], Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_extras(activation)

    def _set_extras(self, activation: str | Callable[[Any], Any] | None = None) -> None:
        self.activation = keras.activations.get(activation)

    def call(self, inputs: Any) -> Any:
        """The normalised input, of any shape ``(N, *)`` whose ``axis`` holds the channels."""
        if keras.backend.backend() != "torch":  # Keras's own is accurate there
            return self.activation(super().call(inputs))
        from evenly.keras.on_torch import group  # torch is not imported for the other backends

        return keras.ops.cast(group(self, inputs), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Keras's, with the activation."""
        return {**super().get_config(), "activation": keras.activations.serialize(self.activation)}
