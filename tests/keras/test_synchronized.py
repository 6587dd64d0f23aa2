"""synchronized=True: processes or devices with parts of a batch equal one with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.keras.cases import array
from tests.processes import Processes

import evenly

KEEP = np.arange(5) < np.array([[5], [0], [3], [4], [1], [2]])


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes, for the whole module."""
    with Processes(2) as group:
        yield group


def step(rank: int, cut: slice | list[slice], masked: bool, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Output, input gradient and weights after one training call on a part of the data."""
    import torch

    cut = cut if isinstance(cut, slice) else cut[rank]
    x, dy = array(6, 5, 3, mean=2.0)[cut], array(6, 5, 3, seed=2)[cut]
    layer = evenly.keras.BatchNormalization(synchronized=True, activation="relu", **options)
    t = torch.tensor(x, requires_grad=True)
    y = layer(t, training=True, mask=torch.tensor(KEEP[cut]) if masked else None)
    y.backward(torch.tensor(dy))
    tensors = {"y": y, "dx": t.grad, "dgamma": layer.gamma.value.grad} | {w.name: w.value for w in layer.weights}
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


@pytest.mark.backend("torch")
@pytest.mark.parametrize("sizes", [(3, 3), (5, 1), (6, 0)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"renorm": True, "renorm_clipping": {"rmax": 1.5, "dmax": 0.5}}])
def test_processes_equal_one(two: Processes, sizes: tuple[int, int], masked: bool, options: dict[str, Any]) -> None:
    """Over torch.distributed, with even, uneven and empty parts, masked or not, renormalised or not."""
    cuts = [slice(0, sizes[0]), slice(sizes[0], 6)]

    whole, parts = step(0, slice(0, 6), masked, options), two.run(step, cuts, masked, options)

    for part, cut in zip(parts, cuts, strict=True):
        for name, value in whole.items():
            if name != "dgamma":
                expected = value[cut] if name in ("y", "dx") else value
                np.testing.assert_allclose(part[name], expected, atol=1e-5, err_msg=name)
    # Gradients of weights stay each process's own, for DistributedDataParallel to add up.
    np.testing.assert_allclose(parts[0]["dgamma"] + parts[1]["dgamma"], whole["dgamma"], atol=1e-5)


@pytest.mark.backend("jax")
def test_devices_equal_one() -> None:
    """Over a keras.distribution of two JAX devices the statistics are those of the whole batch."""
    script = """
import keras, numpy as np, evenly
keras.distribution.set_distribution(keras.distribution.DataParallel())
assert len(keras.distribution.list_devices()) == 2
x = np.concatenate([np.full((4, 2), 1.0), np.full((4, 2), 3.0)]).astype("float32")
layer = evenly.keras.BatchNormalization(synchronized=True, momentum=0.0)
model = keras.Sequential([keras.Input((2,)), layer])
model.compile("sgd", "mse")
model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
print(*np.concatenate(layer.get_weights()[2:]))
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(number) for number in done.stdout.split()], [2, 2, 1, 1], rtol=1e-6)


def test_synchronized_survives_a_config() -> None:
    """The config keeps synchronized, and the layer made from it has it."""
    layer = evenly.keras.BatchNormalization(synchronized=True)

    assert evenly.keras.BatchNormalization.from_config(layer.get_config()).synchronized
    assert not evenly.keras.BatchNormalization().get_config()["synchronized"]
