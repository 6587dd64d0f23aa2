"""The peers beyond torch compute the same norm, each by its own library or process."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from evenly.bench import others, peers
from evenly.bench.judge import Judge, make_inputs
from evenly.bench.shapes import Case

IMAGES = Case("batch", (4, 6, 5, 5))


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", None])
def test_keras_computes_the_same(activation: str | None) -> None:
    """Keras's layer on torch, with torch's parameters of the activation; at mean 1e4 it is what it is."""
    if find_spec("keras") is None:
        pytest.skip("keras is not installed")
    if os.environ.get("KERAS_BACKEND", "torch") != "torch":
        pytest.skip("keras runs on another backend in this session")
    case = Case("batch", (4, 6, 5, 5), activation=activation, residual=True)
    judge = Judge(case)
    assert judge.error(others.keras(case).outcome(judge.inputs)) < 1e-5


@pytest.mark.parametrize("residual", [False, True])
def test_jax_computes_the_same(residual: bool) -> None:
    """The formula compiled by XLA, gradients included; its steps rotate over the inputs."""
    pytest.importorskip("jax", reason="jax is not installed")
    case = Case("batch", (4, 6, 5, 5), activation="gelu" if residual else "leaky_relu", residual=residual)
    if residual:
        case = Case("batch", (4, 6, 5, 5), residual=True)
    judge = Judge(case)
    peer = others.jax(case)
    assert judge.error(peer.outcome(judge.inputs)) < 1e-5
    peer.load([make_inputs(case, seed) for seed in range(2)])
    assert len(peer.steps(0, 3)) == 2


def test_onednn_computes_the_same() -> None:
    """torch's mkldnn tensors reach oneDNN's kernels, forward and backward."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    judge = Judge(IMAGES)
    peer = others.onednn(IMAGES)
    assert judge.error(peer.outcome(judge.inputs)) < 1e-5
    peer.load([judge.inputs])
    assert min(peer.steps(0, 1)) > 0


def test_another_process_is_asked_and_leaves() -> None:
    """torch eager under another allocator: loaded, stepped, and gone when its peer is."""
    peer = others.huge_pages(IMAGES)
    peer.load([make_inputs(IMAGES, seed) for seed in range(2)])
    forward, backward = peer.steps(0, 3)
    process = peer._process  # type: ignore[attr-defined]

    assert forward > 0
    assert backward > 0
    environment = Path(f"/proc/{process.pid}/environ")
    if environment.exists():
        assert b"THP_MEM_ALLOC_ENABLE=1" in environment.read_bytes()
    del peer
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("make", "case", "reason"),
    [
        (others.keras, Case("layer", (4, 6)), "batch norm only"),
        (others.onednn, Case("batch", (4, 6, 5, 5), residual=True), "batch norm \\+ ReLU"),
        (others.onednn, Case("batch", (4, 6)), "images and volumes"),
        (others.jax, Case("group", (4, 6, 5, 5)), "batch norm"),
    ],
)
def test_a_peer_says_why_it_cannot(make: object, case: Case, reason: str) -> None:
    """A reason for the table, not an error."""
    with pytest.raises(peers.Unavailable, match=reason):
        make(case)  # type: ignore[operator]
