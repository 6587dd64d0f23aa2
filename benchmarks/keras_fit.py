"""How much faster is `fit` per norm with evenly's layers than with Keras's own, on Keras's torch backend?

    KERAS_BACKEND=torch python benchmarks/keras_fit.py --json benchmarks/results/keras_fit.json

A model of ``DEPTH`` blocks "norm, ReLU" is fitted with Keras's layers, with evenly's beside a ReLU,
with evenly's that apply the ReLU themselves, with layers that have a norm's weights and do nothing,
and without norms. The time of one norm is that of a step, less that of the step without, over
``DEPTH``; that of the layer that does nothing is what autograd and the optimizer take for any
layer with these weights, whatever it computes. Each round fits all five, in rotating order, and
gives one ratio; printed are the median of the rounds and their quartiles. A model whose losses
disagree with Keras's is not timed, and one whose weights disagree after it is not reported.
``--shapes`` measures some of the shapes; the file's rows of the others stay.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
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
import torch

import evenly.keras
from evenly.bench.results import machine

layers = keras.layers
DEPTH = 8
# Batch and shape of a sample, and the channel axis.
SHAPES = {
    "dense 128": ((64, 128), -1),
    "dense 512": ((256, 512), -1),
    "dense 512, large batch": ((4096, 512), -1),
    "image 16x16, channels last": ((32, 16, 16, 64), -1),
    "image 16x16, channels first": ((32, 64, 16, 16), 1),
    "image 32x32, channels last": ((32, 32, 32, 32), -1),
    "image 32x32, channels first": ((32, 32, 32, 32), 1),
    "image 56x56, channels last": ((16, 56, 56, 64), -1),
    "image 56x56, channels first": ((16, 64, 56, 56), 1),
}


class Untouched(torch.autograd.Function):
    """The identity, with a gradient for a norm's two weights."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        """The input."""
        ctx.save_for_backward(gamma)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Its gradient, and zeros."""
        (gamma,) = ctx.saved_tensors
        return dy, torch.zeros_like(gamma), torch.zeros_like(gamma)


class Nothing(layers.BatchNormalization):
    """A layer with a norm's weights that does nothing, nor has Keras look around it: what no norm can be without."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`call` at once, where the layer is built."""
        return self.call(args[0]) if self.built else super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The input."""
        return Untouched.apply(inputs, self.gamma.value, self.beta.value)


Block = Callable[[int], list[Any]]
KINDS: dict[str, Block] = {
    "keras": lambda axis: [layers.BatchNormalization(axis), layers.ReLU()],
    "evenly": lambda axis: [evenly.keras.BatchNormalization(axis), layers.ReLU()],
    "evenly, fused": lambda axis: [evenly.keras.BatchNormalization(axis, activation="relu")],
    "nothing": lambda axis: [Nothing(axis), layers.ReLU()],
    "no norm": lambda axis: [layers.ReLU()],
}
OURS = ("evenly", "evenly, fused")


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


def seconds(model: keras.Model, x: Any, batch: int) -> float:
    """Time of one step of fit."""
    gc.collect()  # what one model left is not tidied up in another's time
    start = time.perf_counter()
    model.fit(x, x, batch_size=batch, epochs=1, shuffle=False, verbose=0)
    return (time.perf_counter() - start) * batch / len(x)


def study(name: str, rounds: int) -> dict[str, Any]:
    """One shape: microseconds per norm and ratios, from one ratio each round."""
    (batch, *shape), axis = SHAPES[name]
    steps = min(32, max(4, (1 << 22) // math.prod((batch, *shape))))  # in one call of fit: small ones need more
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(batch * steps, *shape)).astype("float32"))
    models = {kind: network(tuple(shape), axis, block) for kind, block in KINDS.items()}
    agree(name, "loss evaluated", {k: [m.evaluate(x, x, batch_size=batch, verbose=0)] for k, m in models.items()})
    agree(name, "loss trained", {k: [m.train_on_batch(x[:batch], x[:batch])] for k, m in models.items()})
    for model in models.values():
        seconds(model, x, batch)
    gc.freeze()  # a full collection walks all of Keras, in whose fit it happens to fall
    times = [{kind: seconds(models[kind], x, batch) for kind in order(turn)} for turn in range(rounds)]
    agree(name, "weights", {kind: model.get_weights() for kind, model in models.items()})
    per_norm = [{kind: (t[kind] - t["no norm"]) / DEPTH for kind in KINDS if kind != "no norm"} for t in times]
    return {
        "shape": name,
        "size": SHAPES[name][0],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "microseconds per norm": {k: round(1e6 * statistics.median(t[k] for t in per_norm), 1) for k in per_norm[0]},
        "times faster": {k: quartiles([t["keras"] / t[k] for t in per_norm]) for k in OURS},
        "whole step, times faster": {k: quartiles([t["keras"] / t[k] for t in times]) for k in OURS},
    }


def order(turn: int) -> list[str]:
    """Who comes when in a round: everyone is first in turn, so that a drift of the machine hits all alike."""
    kinds = list(KINDS)
    first = turn % len(kinds)
    return kinds[first:] + kinds[:first]


def agree(name: str, what: str, found: dict[str, list[Any]]) -> None:
    """Stop where one of ours differs from Keras's."""
    for kind in OURS:
        for mine, its in zip(found[kind], found["keras"], strict=True):
            if not np.allclose(mine, its, rtol=1e-3, atol=1e-4):
                worst = np.abs(np.asarray(mine) - its).max()
                raise SystemExit(f"{name}: {what} with {kind} and with keras differ by {worst:.3g}; no figure.")


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
        rows.append(study(name, arguments.rounds))
        print(told(rows[-1]), flush=True)
    if arguments.json:
        write(arguments.json, rows)


def told(row: dict[str, Any]) -> str:
    """One row in words."""
    plain, fused = (row["times faster"][kind] for kind in OURS)
    took = row["microseconds per norm"]
    return (
        f"{row['shape']:28}  Keras {took['keras']:8.0f} µs a norm and step, doing nothing {took['nothing']:4.0f}"
        f"   evenly {plain[1]:.1f} ({plain[0]:.1f} to {plain[2]:.1f}) times faster"
        f"   with the ReLU fused {fused[1]:.1f} ({fused[0]:.1f} to {fused[2]:.1f})"
    )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, and those of the file that were measured on this machine and are not among them."""
    run = {"machine": machine(), "depth": DEPTH}
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    every = {row["shape"]: row for row in rows}
    if {name: before.get(name) for name in run} == run:
        every = {row["shape"]: row for row in before["rows"]} | every
    run["rows"] = [every[name] for name in SHAPES if name in every]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
