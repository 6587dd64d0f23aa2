"""Train a small network on real handwritten digits, with evenly's batch norm in Keras.

    KERAS_BACKEND=torch python examples/keras_digits.py

Keras's own layer and evenly's are trained alike, and give alike; then the first model is
converted, and goes on learning where it stood.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

import evenly.keras


def network(norm: type[keras.layers.Layer]) -> keras.Model:
    """Two convolutions and a dense layer, each normalised."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),  # a bias before a norm does nothing
            norm(momentum=0.9),  # 23 batches an epoch: 0.99 would still remember the initial statistics
            keras.layers.ReLU(),
            keras.layers.Conv2D(32, 3, strides=2, use_bias=False),
            norm(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def main(epochs: int = 5) -> None:
    """Train both, compare, convert, go on."""
    data = np.load(str(files("evenly.lab") / "data" / "digits.npz"))
    images, classes = data["x"][..., None].astype("float32") / 16, data["y"].astype("int32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]

    models = {}
    for norm in (keras.layers.BatchNormalization, evenly.keras.BatchNormalization):
        keras.utils.set_random_seed(0)
        model = models[norm] = network(norm)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
        model.fit(images[train], classes[train], batch_size=64, epochs=epochs, verbose=0)
        accuracy = model.evaluate(images[test], classes[test], verbose=0)[1]
        print(f"{norm.__module__.split('.')[0]:6}  {epochs} epochs: {accuracy:.1%} of {len(test)} unseen digits")

    model = evenly.keras.convert(models[keras.layers.BatchNormalization])
    model.fit(images[train], classes[train], batch_size=64, epochs=1, verbose=0)
    print(f"converted, one more: {model.evaluate(images[test], classes[test], verbose=0)[1]:.1%}")

    one = model.predict(images[test][:1], verbose=0)
    same = np.allclose(one, model.predict(images[test], verbose=0)[:1], atol=1e-4)
    print(f"one sample alone is what it is in a batch: {same}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
