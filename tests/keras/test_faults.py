"""Faults measured in Keras 3.15.1's BatchNormalization, each beside the right answer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from keras.initializers import Constant
from tests.keras.cases import array, keras_today, numpy

import evenly

Ours, Keras = evenly.keras.BatchNormalization, keras.layers.BatchNormalization


@pytest.mark.backend("torch")
@pytest.mark.parametrize(("mean", "std"), [(100, 0.1), (1000, 0.1), (3000, 0.01)])
def test_small_spread_far_from_zero(mean: float, std: float) -> None:
    """Keras on torch computes E[x²] − E[x]² and loses the variance; ours normalises."""
    x = array(256, 4, mean=mean, std=std)
    x64 = x.astype("float64")
    expected = (x64 - x64.mean(0)) / np.sqrt(x64.var(0) + 1e-5)

    theirs, ours = (numpy(cls(epsilon=1e-5)(x, training=True)) for cls in (Keras, Ours))

    assert keras_today(not np.allclose(theirs.std(0), expected.std(0), rtol=0.01))
    # float32 itself cannot say x - mean better than this.
    np.testing.assert_allclose(ours, expected, atol=4 * np.spacing(np.float32(mean)) / std)


@pytest.mark.backend("torch")
def test_mean_1e4_std_1() -> None:
    """At mean 1e4 and standard deviation 1 Keras on torch gives NaN; ours is right to float32."""
    x = array(32, 8, 8, 16, mean=1e4)
    theirs, ours = (cls() for cls in (Keras, Ours))

    assert keras_today(bool(np.isnan(numpy(theirs(x, training=True))).any()))
    np.testing.assert_allclose(numpy(ours(x, training=True)).std((0, 1, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(numpy(ours.moving_variance), 0.99 + 0.01 * x.astype("float64").var((0, 1, 2)), rtol=1e-4)


@pytest.mark.backend("torch")
def test_group_norm_at_mean_1e4() -> None:
    """The same for GroupNormalization."""
    x = array(8, 8, 8, 16, mean=1e4)
    x64 = x.astype("float64").reshape(8, 64, 4, 4)
    expected = (x64 - x64.mean((1, 3), keepdims=True)) / np.sqrt(x64.var((1, 3), keepdims=True) + 1e-3)

    theirs, ours = (numpy(cls(4)(x)) for cls in (keras.layers.GroupNormalization, evenly.keras.GroupNormalization))

    assert keras_today(bool(np.isnan(theirs).any()))
    np.testing.assert_allclose(ours, expected.reshape(x.shape), atol=5e-3)


@pytest.mark.backend("jax")
def test_large_constant_keeps_its_value_in_inference() -> None:
    """Keras on JAX computes x·a + b, which loses what x and mean share; (x − mean)·a does not."""
    x = np.full((4, 3), 1e7, "float32")
    initial = {"moving_mean_initializer": Constant(1e7 - 1), "moving_variance_initializer": Constant(0.01)}

    theirs, ours = (numpy(cls(**initial)(x)) for cls in (Keras, Ours))

    assert keras_today(not np.allclose(theirs, 1 / np.sqrt(0.011), rtol=0.1))
    np.testing.assert_allclose(ours, 1 / np.sqrt(0.011), rtol=1e-6)


@pytest.mark.backend("torch", "jax")
def test_mask_with_one_channel() -> None:
    """With one channel Keras's masked statistics lose their axis, which is an error; ours keep it."""
    x, mask = array(4, 6, 1), np.arange(6) < np.array([[6], [2], [3], [5]])
    layer = Ours(momentum=0.0)

    layer(x, training=True, mask=mask)

    with pytest.raises(Exception, match=r"[Ii]nd(ex|ic)|too many|shape"):
        Keras()(x, training=True, mask=mask)
    np.testing.assert_allclose(numpy(layer.moving_mean), [x[mask].mean()], rtol=1e-5)


def test_mask_with_channels_first() -> None:
    """With axis=1 Keras puts the mask's new axis last, where it cannot fit; ours puts it where the channels are."""
    x, mask = array(4, 3, 6), np.arange(6) < np.array([[6], [2], [3], [5]])
    layer = Ours(axis=1, momentum=0.0)

    layer(x, training=True, mask=mask)

    with pytest.raises(Exception, match=r"broadcast|expand|size|shape"):
        Keras(axis=1)(x, training=True, mask=mask)
    np.testing.assert_allclose(numpy(layer.moving_mean), np.swapaxes(x, 1, 2)[mask].mean(0), rtol=1e-4)


def test_wholly_masked_batch() -> None:
    """Keras averages a batch without elements in as mean 0 and variance 0; ours leaves the statistics alone."""
    x, mask = array(4, 6, 3, mean=5.0), np.zeros((4, 6), bool)
    theirs, ours = Keras(), Ours()

    y = [numpy(layer(x, training=True, mask=mask)) for layer in (theirs, ours)][1]

    assert keras_today(np.allclose(numpy(theirs.moving_variance), 0.99))
    np.testing.assert_array_equal(numpy(ours.moving_variance), 1)
    np.testing.assert_array_equal(numpy(ours.moving_mean), 0)
    assert np.isfinite(y).all()


def test_masked_positions_are_returned() -> None:
    """Keras returns padding of 100 as a normalised value in the thousands; zero_masked returns 0."""
    x, mask = array(4, 6, 3), np.arange(6) < np.array([[6], [2], [3], [5]])
    x[~mask] = 1e5

    theirs, ours = Keras()(x, training=True, mask=mask), Ours(zero_masked=True)(x, training=True, mask=mask)

    assert keras_today(bool(np.abs(numpy(theirs)[~mask]).min() > 1000))
    np.testing.assert_array_equal(numpy(ours)[~mask], 0)


def test_empty_batch() -> None:
    """An empty batch makes Keras's statistics NaN; ours returns an empty output and keeps them."""
    x = np.zeros((0, 4, 3), "float32")
    theirs, ours = Keras(), Ours()
    with np.errstate(all="ignore"):
        y = [layer(x, training=True) for layer in (theirs, ours)][1]

    assert keras_today(bool(np.isnan(numpy(theirs.moving_mean)).all()))
    assert tuple(y.shape) == x.shape
    np.testing.assert_array_equal(numpy(ours.moving_mean), 0)
    np.testing.assert_array_equal(numpy(ours.moving_variance), 1)


@pytest.mark.parametrize("renorm", [False, True])
def test_nonfinite_batch(renorm: bool) -> None:
    """One NaN spoils Keras's statistics for good; ours leaves that batch out."""
    x = array(8, 3)
    x[2, 1] = np.nan
    theirs, ours = Keras(renorm=renorm), Ours(renorm=renorm)
    for layer in (theirs, ours):
        layer(x, training=True)

    assert keras_today(bool(np.isnan(numpy(theirs.moving_mean)).any()))
    for weight, initial in zip(ours.get_weights(), [1, 0, 0, 1, 1, 0, 1], strict=False):
        np.testing.assert_array_equal(weight, initial)


def test_statistics_in_half_precision() -> None:
    """Under the policy bfloat16 Keras's moving mean stands still at 2.5 under a mean of 3; ours moves on."""
    x = array(256, 2, mean=3.0)
    theirs, ours = (cls(dtype="bfloat16", moving_mean_initializer=Constant(2.5)) for cls in (Keras, Ours))
    for layer in (theirs, ours):
        for _ in range(100):
            layer(x, training=True)

    assert keras_today(np.array_equal(numpy(ops.cast(theirs.moving_mean, "float32")), [2.5, 2.5]))
    np.testing.assert_allclose(numpy(ours.moving_mean), 0.99**100 * 2.5 + (1 - 0.99**100) * x.mean(0), rtol=0.01)


@pytest.mark.backend("torch")
def test_float64() -> None:
    """Under the policy float64 Keras computes in float32; ours in float64."""
    x = np.random.default_rng(0).normal(3.0, 1.0, (64, 3))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)

    theirs, ours = (numpy(cls(dtype="float64")(x, training=True)) for cls in (Keras, Ours))

    assert keras_today(np.abs(theirs - expected).max() > 1e-9)
    np.testing.assert_allclose(ours, expected, atol=1e-13)


@pytest.mark.backend("torch", "jax")
def test_synchronized_is_accepted() -> None:
    """Keras refuses synchronized=True outside TensorFlow; ours takes it, and alone in the world it changes nothing."""
    x = array(8, 3)

    with pytest.raises(ValueError, match="only supported with the TensorFlow backend"):
        Keras(synchronized=True)
    np.testing.assert_array_equal(numpy(Ours(synchronized=True)(x, training=True)), numpy(Ours()(x, training=True)))


@pytest.mark.backend("torch")
def test_rematerialization_counts_a_batch_once() -> None:
    """Recomputing a layer in backward updates Keras's statistics a second time; ours once."""
    x = array(64, 3, mean=1.0)
    means = []
    for cls in (Keras, Ours):
        layer = cls()
        layer.build(x.shape)
        t = ops.convert_to_tensor(x).requires_grad_()
        keras.remat(lambda t, layer=layer: ops.tanh(layer(t, training=True)))(t).sum().backward()
        means.append(numpy(layer.moving_mean))

    assert keras_today(not np.allclose(means[0], 0.01 * x.mean(0), rtol=1e-3))
    np.testing.assert_allclose(means[1], 0.01 * x.mean(0), rtol=1e-4)
