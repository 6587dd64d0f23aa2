"""The Keras callback: a fit is watched, and left as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from evenly.tools.callbacks import keras_callback


def _model():
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(name="bn"), keras.layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")
    return model


@pytest.mark.backend("torch")
def test_a_fit_is_watched(tmp_path):
    """Every second batch gives records of each normalization layer; afterwards the layers are as before."""
    model, callback = _model(), keras_callback(every=2, html=str(tmp_path / "h.html"))
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")

    model.fit(x, np.zeros((64, 4), "float32"), batch_size=16, epochs=1, verbose=0, callbacks=[callback])

    assert [r.step for r in callback.history_.records] == [0] * 4 + [2] * 4
    assert callback.history_.records[0].layer == "bn"
    assert "call" not in vars(model.get_layer("bn"))
    assert (tmp_path / "h.html").exists()


@pytest.mark.backend("jax", "tensorflow")
def test_other_backends_are_refused():
    """Where values cannot be looked at, the error says on which backend they can."""
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=torch"):
        keras_callback()
