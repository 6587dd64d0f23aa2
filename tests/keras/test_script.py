"""A user's whole script gives the same with our layers as with Keras's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.cases import digits

import evenly

layers = keras.layers


def network(norm: Any, activation: str | None) -> keras.Model:
    """Two convolutions and a dense layer with norms; ReLU fused into them or beside them."""

    def block(x: Any, layer: Any, **options: Any) -> Any:
        y = norm(**options)(layer(x))
        return y if activation else layers.ReLU()(y)

    fused = {"activation": activation} if activation else {}
    x = inputs = keras.Input((8, 8, 1))
    x = block(x, layers.Conv2D(8, 3, padding="same", use_bias=False), momentum=0.9, **fused)
    x = block(x, layers.Conv2D(16, 3, strides=2, use_bias=False), gamma_initializer="ones", **fused)
    x = block(layers.Flatten()(x), layers.Dense(32), epsilon=1e-2, beta_regularizer="l2", **fused)
    return keras.Model(inputs, layers.Dense(10)(x))


def script(norm: Any, folder: Path, activation: str | None = None) -> dict[str, np.ndarray]:
    """Fit, evaluate, predict one sample, save, load, continue: every number on the way."""
    keras.utils.set_random_seed(0)
    x, y = digits(320)
    model = network(norm, activation)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    fitted = model.fit(x[:256], y[:256], batch_size=48, epochs=5, verbose=0)  # the last batch has 16
    evaluated = model.evaluate(x[256:], y[256:], verbose=0)
    one = model.predict(x[300:301], verbose=0)
    model.save(folder / "model.keras")
    model = keras.saving.load_model(folder / "model.keras")
    continued = model.fit(x[:256], y[:256], batch_size=64, epochs=1, verbose=0)
    return {
        "loss": np.array(fitted.history["loss"]),
        "evaluation": np.array(evaluated),
        "one sample": one,
        "loss after loading": np.array(continued.history["loss"]),
        "weights": np.concatenate([weight.ravel() for weight in model.get_weights()]),
    }


@pytest.mark.parametrize("activation", [None, "relu"])
def test_same_script_same_numbers(tmp_path: Path, activation: str | None) -> None:
    """Losses and weights over five epochs and one more after a file equal Keras's own to 1e-4, and it learns."""
    theirs = script(layers.BatchNormalization, tmp_path)
    ours = script(evenly.keras.BatchNormalization, tmp_path, activation)

    for name, its in theirs.items():
        np.testing.assert_allclose(ours[name], its, atol=1e-4, rtol=1e-4, err_msg=name)
    assert ours["loss"][-1] < 0.5 * ours["loss"][0]


def test_weights_of_keras_load(tmp_path: Path) -> None:
    """A weights file of a model with Keras's norms loads into the same model with ours, and the other way."""
    x, _ = digits(8)
    theirs, ours = network(layers.BatchNormalization, None), network(evenly.keras.BatchNormalization, None)
    ours(x, training=True)  # statistics that are not the initial ones
    ours.save_weights(tmp_path / "ours.weights.h5")

    theirs.load_weights(tmp_path / "ours.weights.h5")

    np.testing.assert_allclose(theirs.predict(x, verbose=0), ours.predict(x, verbose=0), atol=1e-5)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    again = network(evenly.keras.BatchNormalization, "relu")
    again.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_allclose(again.predict(x, verbose=0), ours.predict(x, verbose=0), atol=1e-5)
