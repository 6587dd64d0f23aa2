"""What the tests of the Keras face share: shapes, arrays, gradients, and whether Keras still has a fault."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Any

import keras
import numpy as np
from keras import ops

SHAPES = {
    "dense": ((8, 5), -1),
    "sequence": ((8, 6, 5), -1),
    "sequence, channels first": ((8, 5, 6), 1),
    "image": ((4, 6, 7, 5), -1),
    "image, channels first": ((4, 5, 6, 7), 1),
    "image, channels between": ((4, 6, 5, 7), 2),
    "volume": ((2, 3, 4, 5, 3), -1),
}


def array(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32."""
    return np.random.default_rng(seed).normal(mean, std, shape).astype("float32")


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Real digits: images of shape (count, 8, 8, 1) from 0 to 1, and their classes."""
    with as_file(files("evenly.lab") / "data" / "digits.npz") as path, np.load(path) as data:
        return data["x"][:count, :, :, None].astype("float32") / 16, data["y"][:count].astype("int32")


def numpy(t: Any) -> np.ndarray:
    """A tensor or variable of any backend as an array."""
    return ops.convert_to_numpy(t)


def randomize(layer: Any, seed: int = 1) -> list[np.ndarray]:
    """Weights between 0.5 and 1.5 in place of the initial ones."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape).astype("float32") for w in layer.weights])
    return layer.get_weights()


def gradient(function: Callable[[Any], Any], x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Gradient at ``x`` for the gradient ``dy`` of the output, by the backend's own differentiation."""

    def loss(x: Any) -> Any:
        return ops.sum(function(x) * ops.convert_to_tensor(dy))

    if keras.backend.backend() == "torch":
        import torch

        t = torch.tensor(x, requires_grad=True)
        loss(t).backward()
        return numpy(t.grad)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            t = tf.Variable(x)
            total = loss(t)
        return numpy(tape.gradient(total, t))
    import jax

    def stateless(x: Any) -> Any:
        with keras.StatelessScope():  # weights must not be assigned what only lives while JAX traces
            return loss(x)

    return numpy(jax.jit(jax.grad(stateless))(x))


def keras_today(fault: bool) -> bool:
    """A fault measured on Keras 3.15.1: it must be there, unless a later Keras has mended it."""
    return fault or tuple(int(part) for part in keras.__version__.split(".")[:3]) > (3, 15, 1)
