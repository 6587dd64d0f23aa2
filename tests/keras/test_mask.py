"""Masks: statistics are those of the elements that count, on any axis."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from tests.keras.cases import array, gradient, numpy

import evenly

Ours = evenly.keras.BatchNormalization
KEEP = np.arange(6) < np.array([[6], [2], [0], [5]])  # (N, L): lengths 6, 2, 0 and 5


@pytest.mark.parametrize(
    ("kind", "channels", "axis"),
    [
        *[("bool", channels, axis) for channels in (1, 3) for axis in (-1, 1)],
        *[("int32", 3, -1), ("float32", 3, 1), ("all axes", 3, -1), ("all axes", 1, 1)],
    ],
)
def test_masked_is_the_rest_alone(kind: str, channels: int, axis: int) -> None:
    """Output, gradient and statistics of a masked batch are those of the batch without the masked positions."""
    x, dy = array(4, 6, channels, mean=2.0), array(4, 6, channels, seed=2)
    x[~KEEP] = 1e6
    masked, alone = Ours(axis=axis, momentum=0.5), Ours(momentum=0.5)
    turn = (lambda t: t) if axis == -1 else (lambda t: ops.transpose(t, (0, 2, 1)))
    mask = ops.convert_to_tensor(KEEP.astype("bool" if kind == "all axes" else kind))
    mask = turn(mask[..., None]) if kind == "all axes" else mask

    def call(x: object) -> object:
        return turn(masked(turn(ops.convert_to_tensor(x)), training=True, mask=mask))

    y = numpy(call(x))[KEEP]
    np.testing.assert_allclose(y, numpy(alone(x[KEEP], training=True)), atol=1e-5)
    for mine, its in zip(masked.weights, alone.weights, strict=True):
        np.testing.assert_allclose(numpy(mine), numpy(its), rtol=1e-5, err_msg=its.name)
    dx = gradient(call, x, dy * KEEP[..., None])
    np.testing.assert_allclose(dx[KEEP], gradient(lambda x: alone(x, training=True), x[KEEP], dy[KEEP]), atol=1e-5)
    np.testing.assert_array_equal(dx[~KEEP], 0)


def test_float_mask_counts_repetitions() -> None:
    """A sample of weight 2 counts like the sample given twice."""
    x, weights = array(5, 3), np.array([1.0, 2.0, 0.0, 3.0, 1.0], "float32")
    weighted, repeated = Ours(), Ours()

    y = numpy(weighted(x, training=True, mask=weights))
    numpy(repeated(np.repeat(x, weights.astype(int), axis=0), training=True))

    np.testing.assert_allclose(numpy(weighted.moving_mean), numpy(repeated.moving_mean), rtol=1e-5)
    np.testing.assert_allclose(numpy(weighted.moving_variance), numpy(repeated.moving_variance), rtol=1e-5)
    assert y.shape == x.shape


def test_samples_mask_of_an_image() -> None:
    """A mask of shape (N,) leaves whole samples out."""
    x, keep = array(4, 2, 3, 5), np.array([True, False, True, True])
    masked, alone = Ours(), Ours()

    y = numpy(masked(x, training=True, mask=keep))[keep]

    np.testing.assert_allclose(y, numpy(alone(x[keep], training=True)), atol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("training", [True, False])
def test_zero_masked(activation: str | None, training: bool) -> None:
    """With zero_masked output and gradient are 0 at masked positions, even of NaN, whatever the activation."""
    x = array(4, 6, 3)
    x[~KEEP] = np.nan
    layer = Ours(zero_masked=True, activation=activation, beta_initializer="ones")

    y = numpy(layer(x, training=training, mask=KEEP))
    dx = gradient(lambda x: layer(x, training=training, mask=KEEP), x, array(*x.shape, seed=2))

    np.testing.assert_array_equal(y[~KEEP], 0)
    np.testing.assert_array_equal(dx[~KEEP], 0)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


def test_mask_comes_from_the_layer_before() -> None:
    """The mask that a Masking layer makes reaches the norm through a model."""
    x = array(4, 6, 3)
    x[~KEEP] = 0
    layer = Ours(momentum=0.0)
    model = keras.Sequential([keras.Input((6, 3)), keras.layers.Masking(), layer])

    model(x, training=True)

    np.testing.assert_allclose(numpy(layer.moving_mean), x[KEEP].mean(0), rtol=1e-4)
    np.testing.assert_allclose(numpy(layer.moving_variance), x[KEEP].var(0), rtol=1e-4)


def test_mask_that_does_not_fit_is_refused() -> None:
    """The error names both shapes and the shapes that would do."""
    with pytest.raises(ValueError, match=r"mask of shape \(4, 6, 3, 1\) does not fit input of shape \(4, 6, 3\)"):
        Ours()(array(4, 6, 3), training=True, mask=np.ones((4, 6, 3, 1), bool))


@pytest.mark.parametrize("training", [True, False])
def test_a_mask_in_keras_shape_on_axis_1(training: bool) -> None:
    """A mask of inputs.shape[:-1] covers the last axis, as in Keras, wherever the channels are."""
    x = array(4, 3, 6, mean=2.0)
    mask = array(4, 3, seed=3) > 0
    mask[0] = True
    x[~mask] = 1e6
    given, spelt = Ours(axis=1, zero_masked=True), Ours(axis=1, zero_masked=True)

    y = numpy(given(x, training=training, mask=ops.convert_to_tensor(mask)))
    full = np.broadcast_to(mask[..., None], x.shape).copy()
    np.testing.assert_allclose(y, numpy(spelt(x, training=training, mask=ops.convert_to_tensor(full))), atol=1e-5)
    if training:
        want = np.array([x[:, c][full[:, c]].mean() for c in range(3)])
        np.testing.assert_allclose(numpy(given.moving_mean), 0.01 * want, rtol=1e-4)
