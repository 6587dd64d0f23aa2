"""How much faster is `fit` per norm with evenly's layers than with Keras's own, on Keras's torch backend?

    KERAS_BACKEND=torch python benchmarks/keras_fit.py --json benchmarks/results/keras_fit.json

A model of ``DEPTH`` blocks "norm, ReLU" is fitted with Keras's layers, with evenly's beside a ReLU,
with evenly's that apply the ReLU themselves, and without norms. The time of one norm is that of a
step, less that of the step without, over ``DEPTH``. Each round fits all four, one after the other,
and gives one ratio; printed are the median of the rounds and their quartiles. A model whose loss
disagrees with Keras's is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np

import evenly.keras
from evenly.bench.results import machine

layers = keras.layers
DEPTH, STEPS = 8, 4
# Batch and shape of a sample, and the channel axis.
SHAPES = {
    "dense, small": ((64, 128), -1),
    "dense, large": ((4096, 512), -1),
    "image 16x16, channels last": ((32, 16, 16, 64), -1),
    "image 16x16, channels first": ((32, 64, 16, 16), 1),
    "image 56x56, channels last": ((16, 56, 56, 64), -1),
    "image 56x56, channels first": ((16, 64, 56, 56), 1),
}
Block = Callable[[int], list[Any]]
KINDS: dict[str, Block] = {
    "keras": lambda axis: [layers.BatchNormalization(axis), layers.ReLU()],
    "evenly": lambda axis: [evenly.keras.BatchNormalization(axis), layers.ReLU()],
    "evenly, fused": lambda axis: [evenly.keras.BatchNormalization(axis, activation="relu")],
    "no norm": lambda axis: [layers.ReLU()],
}


class Scale(layers.Layer):
    """One weight that multiplies all, so that gradients flow through the blocks behind it."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """The weight."""
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x: Any) -> Any:
        """The input, scaled."""
        return x * self.scale


def network(shape: tuple[int, ...], axis: int, block: Block) -> keras.Model:
    """DEPTH blocks behind one weight, compiled."""
    blocks = [layer for _ in range(DEPTH) for layer in block(axis)]
    model = keras.Sequential([keras.Input(shape), Scale(), *blocks])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def seconds(model: keras.Model, x: Any) -> float:
    """Time of one step of fit."""
    start = time.perf_counter()
    model.fit(x, x, batch_size=len(x) // STEPS, epochs=1, shuffle=False, verbose=0)
    return (time.perf_counter() - start) / STEPS


def study(name: str, rounds: int) -> dict[str, Any]:
    """One shape: seconds per norm and ratios, round by round."""
    (batch, *shape), axis = SHAPES[name]
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(batch * STEPS, *shape)).astype("float32"))
    models = {kind: network(tuple(shape), axis, block) for kind, block in KINDS.items()}
    losses = {kind: model.evaluate(x, x, batch_size=batch, verbose=0) for kind, model in models.items()}
    losses |= {kind: model.train_on_batch(x[:batch], x[:batch]) for kind, model in models.items()}
    for kind in ("evenly", "evenly, fused"):
        if not np.isclose(losses[kind], losses["keras"], rtol=1e-4):
            raise SystemExit(
                f"{name}: the loss with {kind} is {losses[kind]}, with keras {losses['keras']}; not timed."
            )
    for model in models.values():
        seconds(model, x)
    times = [{kind: seconds(model, x) for kind, model in models.items()} for _ in range(rounds)]
    per_norm = [{kind: (t[kind] - t["no norm"]) / DEPTH for kind in KINDS if kind != "no norm"} for t in times]
    return {
        "shape": name,
        "microseconds per norm": {k: 1e6 * statistics.median(t[k] for t in per_norm) for k in per_norm[0]},
        "times faster": {k: quartiles([t["keras"] / t[k] for t in per_norm]) for k in ("evenly", "evenly, fused")},
        "whole step, times faster": {
            k: quartiles([t["keras"] / t[k] for t in times]) for k in ("evenly", "evenly, fused")
        },
    }


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(q, 3) for q in statistics.quantiles(values, n=4, method="inclusive")]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.shapes:
        row = study(name, arguments.rounds)
        rows.append(row)
        plain, fused = (row["times faster"][kind] for kind in ("evenly", "evenly, fused"))
        print(
            f"{name:28}  Keras {row['microseconds per norm']['keras']:8.0f} µs a norm and step"
            f"   evenly {plain[1]:.1f} ({plain[0]:.1f} to {plain[2]:.1f}) times faster"
            f"   with the ReLU fused {fused[1]:.1f} ({fused[0]:.1f} to {fused[2]:.1f})",
            flush=True,
        )
    if arguments.json:
        found = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "keras": keras.__version__,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({**found, "depth": DEPTH, "rounds": arguments.rounds, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
