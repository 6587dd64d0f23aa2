"""Batch normalization as a Keras layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from evenly.keras.statistics import statistics_dtype

if keras.backend.backend() == "torch":  # torch is not imported for the other backends
    from evenly.keras import on_torch as on
    from evenly.keras import shortcut
else:
    from evenly.keras import on_ops as on  # type: ignore[no-redef]


@keras.saving.register_keras_serializable("evenly")
class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]  # Keras has no types
    """Keras's BatchNormalization, with accurate statistics, masks that count, and a fused activation.

    ``y = activation(gamma * (x - mean) / sqrt(var + epsilon) + beta)``

    In training, mean and biased variance are those of the mini-batch, and
    ``moving <- momentum * moving + (1 - momentum) * batch``; otherwise, and with
    ``trainable=False``, the moving statistics are used. A batch that is empty, wholly masked or
    not finite leaves them alone. Arguments, defaults, weights and their order are
    keras.layers.BatchNormalization's; what is evenly's is listed last.

    Args:
        axis: the channel axis.
        momentum: weight of the *old* value in the moving statistics (PyTorch's is that of the new).
        epsilon: added to the variance.
        center: whether there is a ``beta``.
        scale: whether there is a ``gamma``.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer:
            as in Keras.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: as in Keras.
        renorm, renorm_clipping, renorm_momentum: batch renormalization, as in Keras.
        synchronized: whether statistics are shared by all processes of torch.distributed (torch
            backend), by all devices of a `keras.distribution` (JAX, where they always are) or by
            all replicas of a tf.distribute strategy.
        activation: applied last: a name or function as in any Keras layer. On the torch backend
            relu, relu6, leaky_relu, elu, silu and gelu are part of the norm's kernel.
        zero_masked: whether the output is 0 where a mask is.
        **kwargs: of every Keras layer: ``name``, ``dtype``, ``trainable``.

    Raises:
        ValueError: an argument is out of its range.

    Source:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167

    Example:
        >>> import numpy as np
        >>> layer = BatchNormalization(momentum=0.9, activation="relu")
        >>> y = layer(np.array([[1.0], [3.0]], "float32"), training=True)
        >>> float(layer.moving_mean[0])
        0.2...
    """

    def __init__(
        self,
        *args: Any,
        activation: str | Callable[[Any], Any] | None = None,
        zero_masked: bool = False,
        synchronized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.synchronized = synchronized  # set here, because Keras refuses it outside TensorFlow
        self._set_extras(activation, zero_masked)

    def _set_extras(self, activation: str | Callable[[Any], Any] | None = None, zero_masked: bool = False) -> None:
        self.activation = keras.activations.get(activation)
        self.zero_masked = zero_masked

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's, but statistics are at least float32: averaging in half precision stands still."""
        if not kwargs.get("trainable", True):
            kwargs.setdefault("dtype", statistics_dtype(self.variable_dtype))
        return super().add_weight(*args, **kwargs)

    if keras.backend.backend() == "torch":

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Keras's: `call`, and around it what there is to do, which is mostly nothing (see `shortcut`)."""
            if type(self) is BatchNormalization and shortcut.open_to(self, args, kwargs):
                return self.call(args[0], training=shortcut.phase(kwargs))
            return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The normalised input.

        Args:
            inputs: any shape; ``axis`` holds the channels.
            training: whether to use the batch's own statistics (if ``trainable``).
            mask: which elements count (bool) or how much (float): ``inputs.shape[:-1]``, which means
                what it means in Keras on any axis; ``inputs``' shape without ``axis``; ``(N,)``; or a
                shape that broadcasts to it.
        """
        y = on.batch(self, inputs, bool(training and self.trainable), mask)
        return on.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Keras's, and those of evenly's arguments that are used."""
        config: dict[str, Any] = super().get_config()
        if self.activation is not keras.activations.linear:
            config["activation"] = keras.activations.serialize(self.activation)
        if self.zero_masked:
            config["zero_masked"] = True
        return config
