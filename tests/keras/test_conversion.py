"""evenly.keras.convert changes the norms of a model in place, and nothing else."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from tests.keras.cases import array, numpy

import evenly

layers = keras.layers


def sequential() -> keras.Model:
    """Convolution, batch norm, group norm, dense."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.GroupNormalization(2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


def functional() -> keras.Model:
    """A norm used twice, one in a nested model and one inside a wrapper."""
    shared, inner = layers.BatchNormalization(), keras.Sequential([layers.Conv2D(2, 1), layers.BatchNormalization()])
    x = inputs = keras.Input((6, 6, 2))
    x = shared(layers.ReLU()(shared(inner(x))))
    x = layers.TimeDistributed(layers.BatchNormalization())(x)
    return keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling2D()(x)))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model of one's own, with norms in a list."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.blocks = [layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization()]
        self.head = layers.Dense(1)

    def call(self, x: object, training: bool | None = None) -> object:
        """The blocks, the mean over places, the head."""
        for block in self.blocks:
            x = block(x, training=training) if isinstance(block, layers.BatchNormalization) else block(x)
        return self.head(keras.ops.mean(x, (1, 2)))


MODELS = {"sequential": sequential, "functional": functional, "subclassed": Subclassed}


def norms(model: keras.Model) -> list[keras.layers.Layer]:
    """The batch and group norms of a model."""
    kinds = (layers.BatchNormalization, layers.GroupNormalization)
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


def compiled(make: object) -> keras.Model:
    """A model with random weights, trained for two steps."""
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.fit(array(16, 6, 6, 2), array(16, 1, seed=1), batch_size=8, verbose=0, shuffle=False)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_where_it_stood(name: str) -> None:
    """Between two calls of fit convert changes classes, but no weight, no optimizer state and no loss."""
    kept, converted = compiled(MODELS[name]), compiled(MODELS[name])
    variables = [id(v) for v in converted.variables]

    assert evenly.keras.convert(converted) is converted

    assert norms(converted)
    assert all(type(layer).__module__.startswith("evenly.keras") for layer in norms(converted))
    assert [id(v) for v in converted.variables] == variables
    x, y = array(32, 6, 6, 2, seed=3), array(32, 1, seed=4)
    histories = [m.fit(x, y, batch_size=8, epochs=3, verbose=0, shuffle=False).history for m in (kept, converted)]
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-4)
    for mine, its in zip(converted.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-4)
    np.testing.assert_allclose(converted.predict(x[:1], verbose=0), kept.predict(x[:1], verbose=0), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_converted_model_survives_a_file(name: str, tmp_path: Path) -> None:
    """A converted model saved to .keras and loaded has our layers and predicts the same."""
    model, x = evenly.keras.convert(compiled(MODELS[name])), array(4, 6, 6, 2, seed=5)
    model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras")

    made = [layer for layer in norms(loaded) if name != "subclassed"]  # its constructor says Keras's
    assert all(type(layer).__module__.startswith("evenly.keras") for layer in made)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_compiled_code_is_made_anew() -> None:
    """A model whose training step was traced with Keras's norm trains with ours afterwards: NaN does no harm."""
    model, x = compiled(sequential), array(16, 6, 6, 2)
    x[0] = np.nan

    evenly.keras.convert(model).fit(x, array(16, 1), batch_size=16, verbose=0)

    assert np.isfinite(numpy(norms(model)[0].moving_mean)).all()


def test_unbuilt_model() -> None:
    """A model not built yet is converted, and builds our layers."""
    model = evenly.keras.convert(keras.Sequential([layers.Dense(3), layers.BatchNormalization(dtype="bfloat16")]))

    model(array(2, 4))

    assert isinstance(model.layers[1], evenly.keras.BatchNormalization)
    assert model.layers[1].moving_mean.dtype == "float32"


def test_built_statistics_in_half_precision_are_widened() -> None:
    """A built norm under the policy bfloat16 gets float32 statistics of the same values, in the same order."""
    layer, x = layers.BatchNormalization(dtype="bfloat16", renorm=True), array(64, 2, mean=3.0)
    layer.build(x.shape)
    before = [numpy(keras.ops.cast(w, "float32")) for w in layer.weights]
    names = [w.path for w in layer.weights]

    evenly.keras.convert(layer)

    assert [w.path for w in layer.weights] == names
    assert [w.dtype for w in layer.weights] == ["bfloat16"] * 2 + ["float32"] * 5
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(keras.ops.cast(weight, "float32")), value)
    layer(x, training=True)
    assert layer.get_weights()[2].dtype == "float32"
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.01 * x.mean(0), rtol=0.02)


def test_subclasses_of_others_are_left_alone() -> None:
    """A class of the user's own, derived from Keras's norm, keeps its class."""

    class Mine(layers.BatchNormalization):
        pass

    model = evenly.keras.convert(keras.Sequential([Mine(), layers.BatchNormalization()]))

    assert [type(layer) for layer in model.layers] == [Mine, evenly.keras.BatchNormalization]


def test_takes_keras_models_only() -> None:
    """Anything else is refused with the function that would do."""
    with pytest.raises(TypeError, match=r"takes a keras\.Model or layer, got dict"):
        evenly.keras.convert({})
