"""Shared statistics in compiled graphs: no break, one message each way, the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from tests.processes import Processes
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.nn import sync

CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "relu, uneven": ({"activation": "relu"}, (4, 2)),
    "cumulative, one empty": ({"momentum": None, "affine": False}, (0, 3)),
    "no statistics": ({"track_running_stats": False}, (2, 3)),
}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes, for the whole module."""
    with Processes(2) as group:
        yield group


def counting(found: list[list[str]]) -> Any:
    """A compiler that runs graphs as they are, and notes what messages each sends."""

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        sent = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        names = [name.removeprefix("_c10d_functional.").removesuffix(".default") for name in sent if "c10d" in name]
        found.append([name for name in names if name != "wait_tensor"])
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=note, bw_compiler=note)


def two_steps(layer: Any, norm: evenly.BatchNorm, x: Tensor, residual: Tensor, mask: Tensor) -> list[Tensor]:
    """Outputs, gradients and buffers of two training steps and an evaluation."""
    found = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = layer(leaf, residual=residual, mask=mask)
        y.square().sum().backward()
        found += [y.detach(), leaf.grad]
    found += [p.grad for p in norm.parameters()] + [b.clone() for b in norm.buffers()]
    if norm.track_running_stats:
        norm.eval()
        found.append(layer(x, residual=residual, mask=mask).detach())
    return found


def compiled_and_eager(rank: int, settings: dict[str, Any], samples: tuple[int, int]) -> Any:
    """The same by a compiled layer and an eager one, and the graphs' messages."""
    torch._dynamo.reset()
    graphs: list[list[str]] = []
    norms = [evenly.SyncBatchNorm(3, dtype=torch.float64, **settings) for _ in range(2)]
    generator = torch.Generator().manual_seed(rank)
    x, residual = (torch.randn(samples[rank], 3, 5, generator=generator, dtype=torch.float64) + rank for _ in range(2))
    mask = torch.rand(samples[rank], 5, generator=generator) < 0.7
    compiled = torch.compile(norms[0], fullgraph=True, backend=counting(graphs))
    return two_steps(compiled, norms[0], x, residual, mask), two_steps(norms[1], norms[1], x, residual, mask), graphs


@pytest.mark.parametrize(("settings", "samples"), CASES.values(), ids=CASES)
def test_a_compiled_layer_equals_the_eager_one(
    two: Processes, settings: dict[str, Any], samples: tuple[int, int]
) -> None:
    """Without a graph break; a gather forward, a sum backward, nothing in evaluation."""
    for compiled, eager, graphs in two.run(compiled_and_eager, settings, samples):
        assert len(compiled) == len(eager)
        for a, b in zip(compiled, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        if settings.get("track_running_stats", True):
            assert graphs.pop() == []  # the evaluation's
        # torch may compile again for the second step; each forward and backward sends one message.
        assert graphs in (
            [["all_gather_into_tensor"], ["all_reduce"]],
            [["all_gather_into_tensor"], ["all_reduce"]] * 2,
        )


def messages(rank: int) -> list[int]:
    """How many messages an eager forward, backward and evaluation send."""
    numbers: list[int] = []
    send = sync._sent

    def counting_send(*arguments: Any) -> Any:
        numbers[-1] += 1
        return send(*arguments)

    sync._sent = counting_send
    try:
        layer, x = evenly.SyncBatchNorm(3), torch.randn(4, 3, 5, requires_grad=True)
        numbers.append(0)
        y = layer(x)
        numbers.append(0)
        y.sum().backward()
        numbers.append(0)
        layer.eval()(x).sum().backward()
    finally:
        sync._sent = send
    return numbers


def test_one_message_each_way(two: Processes) -> None:
    """Eager forward and backward send one message each, evaluation none."""
    assert two.run(messages) == [[1, 1, 0]] * 2


def train_compiled(rank: int, in_checkpoint: bool) -> list[Tensor]:
    """A compiled network under DistributedDataParallel: its state after three steps."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 6, bias=False), evenly.SyncBatchNorm(6, activation="relu")).double()

    def forward(x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False) if in_checkpoint else block(x)

    model = torch.compile(forward, fullgraph=True, backend="aot_eager")
    parallel = DistributedDataParallel(block)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[rank::2]
    for _ in range(3):
        if in_checkpoint:
            model(x).square().sum().backward()
            for p in block.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of what DistributedDataParallel does to a graph
                torch.compile(parallel, backend="aot_eager")(x).square().sum().backward()
        with torch.no_grad():
            for p in block.parameters():
                p -= 0.01 * p.grad
                p.grad = None
    return [t.detach().clone() for t in block.state_dict().values()]


@pytest.mark.parametrize("in_checkpoint", [False, True], ids=["data parallel", "checkpoint"])
def test_compiled_training_equals_one_process(two: Processes, in_checkpoint: bool) -> None:
    """Compiled under DistributedDataParallel, or around activation checkpointing: the state of one process's run."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 6, bias=False), evenly.BatchNorm(6, activation="relu")).double()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer = torch.optim.SGD(block.parameters(), 0.005)  # the mean of two processes' gradients is half the sum
    for _ in range(3):
        optimizer.zero_grad()
        block(x).square().sum().backward()
        optimizer.step()

    for state in two.run(train_compiled, in_checkpoint):
        for a, b in zip(state, block.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
