"""From Keras's norms to evenly's, in a model that exists."""

from __future__ import annotations

from typing import Any

import keras

from evenly.keras.batchnorm import BatchNormalization
from evenly.keras.groupnorm import GroupNormalization
from evenly.keras.statistics import statistics_dtype

_OURS = {
    keras.layers.BatchNormalization: BatchNormalization,
    keras.layers.GroupNormalization: GroupNormalization,
}


def convert(model: Any) -> Any:
    """Make evenly's of all of Keras's batch and group norms in a model, in place.

    Only the class of a layer changes: weights, graph, sharing between models, names, regularizers and
    the optimizer's state stay as they are, so that training goes on where it stood. Any model
    will do: Sequential, Functional, subclassed, nested. Subclasses of Keras's norms that are not
    Keras's own are left alone.

    Args:
        model: a `keras.Model` or layer, built or not, compiled or not.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a Keras layer.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization()])
        >>> type(convert(model).layers[1]).__module__
        'evenly.keras.batchnorm'
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"evenly.keras.convert takes a keras.Model or layer, got {type(model).__name__}; "
            "for a torch.nn.Module use evenly.convert."
        )
    for layer in model._flatten_layers():
        ours = _OURS.get(type(layer))
        if ours is not None:
            layer.__class__ = ours
            layer._set_extras()
            _widen_statistics(layer)
        if isinstance(layer, keras.Model):
            # What was compiled or traced has the old layers' code in it; Keras makes these anew when asked.
            layer.train_function = layer.test_function = layer.predict_function = None
    return model


def _widen_statistics(layer: Any) -> None:
    """Statistics in half precision become float32 in the same variables, as a layer of ours would have made them."""
    for variable in layer.non_trainable_variables:
        if variable.dtype != (dtype := statistics_dtype(variable.dtype)):
            value = keras.ops.cast(variable, dtype)
            variable._dtype = dtype  # Keras has no public way to change a variable's type
            variable._initialize(value)
            layer._post_build()  # on torch the module's parameters are these values
