"""evenly.keras.BatchNormalization is Keras's layer: same arguments, weights, configs and numbers."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import ops
from tests.keras.cases import SHAPES, array, gradient, numpy, randomize

import evenly

Ours, Keras = evenly.keras.BatchNormalization, keras.layers.BatchNormalization
OPTIONS = {
    "default": {},
    "no center": {"center": False},
    "no scale": {"scale": False},
    "neither": {"center": False, "scale": False},
    "momentum, epsilon": {"momentum": 0.5, "epsilon": 0.1},
    "renorm": {"renorm": True},
    "renorm, clipped": {"renorm": True, "renorm_clipping": {"rmin": 0.9, "rmax": 1.1, "dmax": 0.1}},
    "renorm, no scale": {"renorm": True, "scale": False, "renorm_momentum": 0.9},
}


@pytest.mark.parametrize(
    ("shape", "options"), [(shape, "default") for shape in SHAPES] + [("image", options) for options in OPTIONS]
)
def test_agrees_with_keras(shape: str, options: str) -> None:
    """Output, input gradient and every weight equal Keras's through two training calls and one of inference."""
    (size, axis), arguments = SHAPES[shape], OPTIONS[options]
    ours, theirs = Ours(axis=axis, **arguments), Keras(axis=axis, **arguments)
    ours.build(size)
    theirs.build(size)
    theirs.set_weights(randomize(ours))
    dy = array(*size, seed=9)

    for seed, training in ((1, True), (2, True), (3, False)):
        x = array(*size, mean=0.5, seed=seed)
        np.testing.assert_allclose(numpy(ours(x, training=training)), numpy(theirs(x, training=training)), atol=3e-5)
        for mine, its in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(numpy(mine), numpy(its), atol=1e-5, err_msg=its.name)
    if "renorm" not in options:  # each call moves its statistics, so there is no second call to compare
        dx = [gradient(lambda x, f=f: f(x, training=True), x, dy) for f in (ours, theirs)]
        np.testing.assert_allclose(*dx, atol=1e-4)


def test_renorm_gradient_holds_its_corrections_constant() -> None:
    """With renorm the gradient is that of batch norm with gamma times r: no gradient flows through r and d."""
    x, dy = array(16, 3, mean=2.0, std=3.0), array(16, 3, seed=2)
    layers = [cls(renorm=True, renorm_clipping={"rmax": 2.0}) for cls in (Ours, Keras)]

    dx = [gradient(lambda x, f=f: f(x, training=True), x, dy) for f in layers]

    np.testing.assert_allclose(*dx, atol=1e-5)


def test_takes_every_argument_of_keras() -> None:
    """Each argument of the installed Keras's layer can be given, and comes back from the config."""
    names = [p for p in inspect.signature(Keras.__init__).parameters if p not in ("self", "kwargs")]
    config = Keras(name="norm").get_config()

    ours = Ours(**{name: config[name] for name in names})

    assert {name: ours.get_config()[name] for name in names} == {name: config[name] for name in names}


def test_config_makes_the_same_layer_again() -> None:
    """from_config(get_config()) has the same settings, the activation and zero_masked among them."""
    layer = Ours(axis=1, momentum=0.5, activation="leaky_relu", zero_masked=True, gamma_regularizer="l2")

    again = Ours.from_config(layer.get_config())

    assert again.get_config() == layer.get_config()
    assert again.activation is keras.activations.leaky_relu


def test_config_is_keras_own_where_no_extra_is_used():
    """Name for name and value for value; an extra shows when it is used."""
    assert Ours(name="norm").get_config() == Keras(name="norm").get_config()
    assert Ours(zero_masked=True).get_config()["zero_masked"]


def test_a_call_as_in_tensorflow_models():
    """The arguments that tf.keras's own applications spell out."""
    arguments = {"epsilon": 0.001, "center": True, "scale": True}
    starts = {"beta_initializer": "zeros", "gamma_initializer": "ones"}
    x = array(8, 3)
    ours, theirs = Ours(**arguments, **starts), Keras(**arguments, **starts)

    np.testing.assert_allclose(numpy(ours(x, training=True)), numpy(theirs(x, training=True)), atol=1e-5)
    for mine, its in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(numpy(mine), numpy(its), atol=1e-6)


def test_weights_are_in_the_order_of_keras() -> None:
    """gamma, beta, moving_mean, moving_variance, and renorm's three behind them."""
    for options in ({}, {"renorm": True}):
        layers = [cls(**options) for cls in (Ours, Keras)]
        for layer in layers:
            layer.build((2, 3))

        assert [w.name for w in layers[0].weights] == [w.name for w in layers[1].weights]


@pytest.mark.parametrize("name", ["linear", "relu", "relu6", "leaky_relu", "elu", "silu", "swish", "gelu", "tanh"])
@pytest.mark.parametrize("training", [True, False])
def test_activation_is_that_of_keras(name: str, training: bool) -> None:
    """activation=name gives what Keras's layer followed by Activation(name) gives, gradient included."""
    x, dy = array(8, 4, 5, std=4.0), array(8, 4, 5, seed=2)
    ours, theirs, after = Ours(activation=name), Keras(), keras.layers.Activation(name)
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.set_weights(randomize(ours))

    functions = [lambda x: ours(x, training=training), lambda x: after(theirs(x, training=training))]

    np.testing.assert_allclose(*[numpy(f(x)) for f in functions], atol=2e-5)
    np.testing.assert_allclose(*[gradient(f, x, dy) for f in functions], atol=2e-4)


def test_not_trainable_means_inference() -> None:
    """With trainable=False the moving statistics are used and kept, also when training=True is asked."""
    x, layer = array(8, 3, mean=5.0), Ours()
    layer.build(x.shape)
    before = randomize(layer)
    layer.trainable = False

    np.testing.assert_array_equal(numpy(layer(x, training=True)), numpy(layer(x, training=False)))
    np.testing.assert_array_equal(np.stack(layer.get_weights()), np.stack(before))


def test_one_sample_is_what_it_is_in_a_batch() -> None:
    """Inference of one sample equals its row in any batch, bit by bit."""
    x, layer = array(8, 3), Ours(activation="relu")
    layer.build(x.shape)
    randomize(layer)

    np.testing.assert_array_equal(numpy(layer(x[2:3])), numpy(layer(x))[2:3])


def test_one_value_per_channel_gives_beta() -> None:
    """A batch of one dense sample is normalised to beta, as by Keras."""
    layer = Ours(beta_initializer="ones")

    np.testing.assert_array_equal(numpy(layer(array(1, 3), training=True)), np.ones((1, 3)))


def test_integers_are_normalised() -> None:
    """Integer input is taken as float32, as by Keras."""
    x = np.arange(12, dtype="int32").reshape(4, 3)

    np.testing.assert_allclose(numpy(Ours()(x, training=True)), numpy(Keras()(x, training=True)), atol=1e-5)


@pytest.mark.parametrize("policy", ["float64", "float16", "mixed_bfloat16", "bfloat16"])
def test_dtype_policy(policy: str) -> None:
    """Output has the compute type, gamma and beta the variable type; statistics are at least float32."""
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless told otherwise for the whole process")
    x, layer = array(64, 3, mean=3.0), Ours(dtype=policy, activation="relu")

    y = layer(x, training=True)

    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert layer.gamma.dtype == layer.variable_dtype
    assert layer.moving_mean.dtype == ("float64" if policy == "float64" else "float32")
    expected = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), 0)
    np.testing.assert_allclose(numpy(ops.cast(y, "float32")), expected, atol=0.05 if "float16" in policy else 1e-5)


def test_stateless_call_returns_the_new_statistics() -> None:
    """A stateless call leaves the layer alone and hands the updated weights back."""
    x, layer = array(8, 3, mean=5.0), Ours(momentum=0.5)
    layer.build(x.shape)
    before = layer.get_weights()

    _, after = layer.stateless_call(
        [w.value for w in layer.trainable_variables], [w.value for w in layer.non_trainable_variables], x, training=True
    )

    np.testing.assert_array_equal(np.stack(layer.get_weights()), np.stack(before))
    np.testing.assert_allclose(numpy(after[0]), 0.5 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(numpy(after[1]), 0.5 + 0.5 * x.var(0), rtol=1e-5)


def test_stateless_scope_collects_the_update() -> None:
    """In a scope that maps no variable, the new statistics are in the scope and the layer's own stay."""
    x, layer = array(8, 3, mean=5.0), Ours(momentum=0.5)
    layer.build(x.shape)

    with keras.StatelessScope() as scope:
        layer(x, training=True)

    np.testing.assert_allclose(numpy(scope.get_current_value(layer.moving_mean)), 0.5 * x.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(numpy(layer.moving_mean), np.zeros(3))
    np.testing.assert_array_equal(numpy(layer.moving_variance), np.ones(3))


@pytest.mark.backend("torch")
def test_assigned_statistics_are_those_written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Keras cannot be asked for a scope, statistics take the long way and are the same."""
    from evenly.keras import on_torch

    x, layers = array(8, 3, mean=5.0), [Ours(), Ours()]
    layers[0](x, training=True)
    monkeypatch.setattr(on_torch, "in_stateless_scope", lambda: True)
    layers[1](x, training=True)

    np.testing.assert_array_equal(*(np.stack(layer.get_weights()) for layer in layers))


def test_tracing_a_model_leaves_statistics_alone() -> None:
    """Building a functional model around a layer of one's own does not move the statistics inside."""

    class Block(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Ours()
            self.norm.build((None, 3))

        def call(self, x: object) -> object:
            return self.norm(x, training=True)

    block = Block()
    keras.Model(inputs := keras.Input((3,)), block(inputs))

    np.testing.assert_array_equal(numpy(block.norm.moving_mean), np.zeros(3))
    np.testing.assert_array_equal(numpy(block.norm.moving_variance), np.ones(3))


def test_unknown_activation_is_refused_at_construction() -> None:
    """An activation that Keras does not know fails where the layer is made."""
    with pytest.raises(ValueError, match="activation function identifier"):
        Ours(activation="reluu")
