"""Peers beyond torch's own layers: Keras, JAX, oneDNN, and torch eager under another allocator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from evenly.bench.judge import EPS, Inputs, Outcome, make_affine
from evenly.bench.peers import Peer, TorchPeer, Unavailable, eager, in_place, torch_layer
from evenly.bench.shapes import Case


def keras(case: Case) -> Peer:
    """Keras's BatchNormalization on its torch backend, then the residual and Keras's activation."""
    if case.norm != "batch":
        raise Unavailable("measured for batch norm only")
    if find_spec("keras") is None:
        raise Unavailable("keras is not installed: pip install keras")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as keras_

    if keras_.backend.backend() != "torch":
        raise Unavailable(f"keras runs on {keras_.backend.backend()} here; set KERAS_BACKEND=torch")
    policy = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}.get(case.dtype, case.dtype)
    layer = keras_.layers.BatchNormalization(axis=1, epsilon=EPS, dtype=policy)
    layer.build(case.shape)
    for variable, value in zip((layer.gamma, layer.beta), make_affine(case), strict=True):
        variable.assign(value)
    activation = keras_.activations.get(case.activation or "linear")
    if case.activation == "leaky_relu":
        activation = partial(activation, negative_slope=0.01)  # torch's default; Keras's is 0.2

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = layer(x, training=True)
        result: Tensor = activation(y if residual is None else y + residual)
        return result

    return TorchPeer(case, run, [layer.gamma.value, layer.beta.value])


def onednn(case: Case) -> Peer:
    """oneDNN's batch norm and ReLU, on tensors that already have oneDNN's layout (torch's mkldnn tensors)."""
    if case.norm != "batch" or case.residual or case.activation != "relu" or case.layout == "last":
        raise Unavailable("measured for batch norm + ReLU, channels first")
    if case.dtype != "float32" or len(case.shape) not in (4, 5):
        raise Unavailable("torch reaches it for float32 images and volumes only")
    if not torch.backends.mkldnn.is_available():
        raise Unavailable("this torch is built without oneDNN")
    layer = torch_layer(case)
    with torch.no_grad():
        for name, value in make_affine(case)._asdict().items():
            getattr(layer, name).copy_(value)
    return _OneDnn(case, lambda x, residual: in_place(layer(x), case.activation), list(layer.parameters()))


class _OneDnn(TorchPeer):
    """As `TorchPeer`, its inputs brought to oneDNN's layout beforehand, its outputs brought back to be judged."""

    def load(self, inputs: Sequence[Inputs]) -> None:
        super().load([self._moved(one) for one in inputs])

    def outcome(self, inputs: Inputs) -> Outcome:
        y, dx, dweight, dbias, _ = super().outcome(self._moved(inputs))
        assert dbias is not None
        return Outcome(y.to_dense(), dx.to_dense(), dweight.detach(), dbias.detach(), None)

    @staticmethod
    def _moved(inputs: Inputs) -> Inputs:
        return Inputs(inputs.x.detach().to_mkldnn(), None, inputs.dy.to_mkldnn())


def jax(case: Case) -> Peer:
    """The same formula in JAX, compiled as a whole: what XLA's fusion makes of it."""
    if case.norm != "batch" or case.layout == "last":
        raise Unavailable("measured for batch norm, channels first")
    if case.dtype == "float64":
        raise Unavailable("JAX computes in float32 unless told otherwise for the whole process")
    if find_spec("jax") is None:
        raise Unavailable("jax is not installed: pip install jax")
    return _Jax(case)


class _Jax:
    """Forward compiled by itself, forward and backward compiled as one."""

    def __init__(self, case: Case) -> None:
        import jax as jax_
        import jax.numpy as jnp

        self._affine = tuple(_to_jax(t) for t in make_affine(case))
        axes = tuple(axis for axis in range(len(case.shape)) if axis != 1)
        wide = (-1, *(1 for _ in case.shape[2:]))
        act = getattr(jax_.nn, case.activation) if case.activation else lambda z: z

        def forward(x: Any, residual: Any, weight: Any, bias: Any) -> Any:
            wider = x.astype(jnp.float32)
            mean = wider.mean(axes, keepdims=True)
            var = ((wider - mean) ** 2).mean(axes, keepdims=True)
            z = (wider - mean) * jax_.lax.rsqrt(var + EPS) * weight.reshape(wide) + bias.reshape(wide)
            z = z if residual is None else z + residual
            # Running statistics would be updated from these; they are returned so that they are computed.
            return act(z).astype(x.dtype), (mean, var)

        def both(x: Any, residual: Any, weight: Any, bias: Any, dy: Any) -> Any:
            y, back, statistics = jax_.vjp(forward, x, residual, weight, bias, has_aux=True)
            return y, back(dy), statistics

        self._forward, self._both = jax_.jit(forward), jax_.jit(both)
        self._block = jax_.block_until_ready

    def load(self, inputs: Sequence[Inputs]) -> None:
        """See `evenly.bench.timing.Trial`."""
        self._inputs = [tuple(_to_jax(t) for t in one) for one in inputs]

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """See `evenly.bench.timing.Trial`; backward is the whole less the forward."""
        start = perf_counter()
        for step in range(first, first + number):
            x, residual, _ = self._inputs[step % len(self._inputs)]
            self._block(self._forward(x, residual, *self._affine))
        forward = perf_counter() - start
        start = perf_counter()
        for step in range(first, first + number):
            x, residual, dy = self._inputs[step % len(self._inputs)]
            self._block(self._both(x, residual, *self._affine, dy))
        return forward, perf_counter() - start - forward

    def outcome(self, inputs: Inputs) -> Outcome:
        """See `Peer`."""
        x, residual, dy = (_to_jax(t) for t in inputs)
        y, (dx, dresidual, dweight, dbias), _ = self._both(x, residual, *self._affine, dy)
        found = [None if t is None else torch.utils.dlpack.from_dlpack(t) for t in (y, dx, dweight, dbias, dresidual)]
        return Outcome(*found)  # type: ignore[arg-type]


def _to_jax(t: Tensor | None) -> Any:
    import jax.numpy as jnp

    return None if t is None else jnp.from_dlpack(t.detach().contiguous())


def huge_pages(case: Case) -> Peer:
    """torch eager in a process of its own whose allocator asks for huge pages (THP_MEM_ALLOC_ENABLE=1)."""
    return _Elsewhere(case, {"THP_MEM_ALLOC_ENABLE": "1"})


def jemalloc(case: Case) -> Peer:
    """torch eager in a process of its own under jemalloc, tuned as torch's own performance guide says."""
    from ctypes.util import find_library

    library = find_library("jemalloc")
    if library is None:
        raise Unavailable("libjemalloc is not installed")
    settings = "oversize_threshold:1,background_thread:true,metadata_thp:auto,thp:always,dirty_decay_ms:-1"
    return _Elsewhere(case, {"LD_PRELOAD": library, "MALLOC_CONF": settings + ",muzzy_decay_ms:-1"})


class _Elsewhere:
    """torch eager in another process, which makes the same inputs and waits for orders."""

    def __init__(self, case: Case, environment: dict[str, str]) -> None:
        self._case = case
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evenly.bench.others"],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._ask(case=asdict(case), threads=torch.get_num_threads())

    def load(self, inputs: Sequence[Inputs]) -> None:
        """See `evenly.bench.timing.Trial`."""
        self._ask(load=len(inputs))

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """See `evenly.bench.timing.Trial`."""
        forward, backward = self._ask(steps=(first, number))
        return forward, backward

    def outcome(self, inputs: Inputs) -> Outcome:
        """See `Peer`; the allocator does not change what torch computes, so it is judged here."""
        return eager(self._case).outcome(inputs)

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable(f"the other process ended with status {self._process.wait()}")
        return json.loads(answer)

    def __del__(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # it leaves at the end of its orders
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


def _serve() -> None:
    """The other process: one order a line, one answer a line."""
    from evenly.bench.judge import make_rotation

    peer: Peer | None = None
    for line in sys.stdin:
        order, answer = json.loads(line), None
        if "case" in order:
            torch.set_num_threads(order["threads"])
            case = Case(**{**order["case"], "shape": tuple(order["case"]["shape"])})
            peer = eager(case)
        elif "load" in order:
            assert peer is not None
            peer.load(make_rotation(case, order["load"]))
        else:
            assert peer is not None
            answer = peer.steps(*order["steps"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
