"""evenly.keras.GroupNormalization is Keras's layer: same arguments, weights, configs and numbers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.keras.cases import array, numpy, randomize

import evenly


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("groups", [1, 3, -1])
@pytest.mark.parametrize("options", [{}, {"scale": False, "epsilon": 0.1}, {"center": False, "activation": "relu"}])
def test_group_normalization_agrees_with_keras(axis: int, groups: int, options: dict) -> None:
    """GroupNormalization equals Keras's, for any number of groups, channels first and last."""
    x = array(2, 6, 5, 6, mean=0.5)
    ours = evenly.keras.GroupNormalization(groups, axis, **options)
    theirs = keras.layers.GroupNormalization(groups, axis, **{k: v for k, v in options.items() if k != "activation"})
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.set_weights(randomize(ours))

    expected = numpy(theirs(x))

    np.testing.assert_allclose(
        numpy(ours(x)), np.maximum(expected, 0) if "activation" in options else expected, atol=2e-5
    )
    assert evenly.keras.GroupNormalization.from_config(ours.get_config()).get_config() == ours.get_config()
