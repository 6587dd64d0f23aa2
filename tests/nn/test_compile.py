"""torch.compile: one graph, the same values, statistics counted once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.nn import compiled, counted  # noqa: F401  # register the operators

# torch's own compiler warns of torch's own deprecations while it imports and traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script"),
]


def _compile(function: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, backend=backend, fullgraph=True)  # type: ignore[no-any-return]


def _same(layer: nn.Module, *inputs: Tensor, steps: int = 2, backend: str = "aot_eager", **extras: Tensor) -> None:
    """Compiled and eager agree in output, gradients and every buffer after some steps."""
    eager = copy.deepcopy(layer)
    graph = _compile(layer, backend)
    for _ in range(steps):
        results = []
        for module, run in ((layer, graph), (eager, eager)):
            leaves = [t.clone().requires_grad_() for t in inputs]
            y = run(*leaves, **extras)
            dy = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
            results.append([y, *torch.autograd.grad(y, [*leaves, *module.parameters()], dy)])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(dict(layer.named_buffers())[name], buffer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None, "activation": "relu"},
        {"average": "debiased", "activation": "elu"},
        {"ghosts": 2, "activation": "silu"},
        {"ghosts": 4},
        {"renorm": evenly.Renorm(2.0, 1.0, 3)},
        {"accumulate": 2},
    ],
    ids=str,
)
def test_batch_norm_is_one_graph(options: dict[str, Any]) -> None:
    """fullgraph, also with momentum=None (pytorch#194504), with values, gradients and buffers of eager."""
    _same(evenly.BatchNorm2d(4, **options), torch.randn(6, 4, 3, 5))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
def test_residual_and_mask(activation: str) -> None:
    """Both go through the operator, with a bit an element or the residual kept for backward."""
    _same(
        evenly.BatchNorm2d(4, activation=activation),
        torch.randn(6, 4, 3, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(6, 4, 3, 5),
        mask=torch.rand(6, 3, 5) > 0.3,
    )


@pytest.mark.parametrize(
    "layer",
    [
        evenly.LayerNorm(5, activation="gelu"),
        evenly.RMSNorm(5),
        evenly.GroupNorm(2, 4, activation="relu"),
        evenly.InstanceNorm2d(4, affine=True, track_running_stats=True),
        evenly.LayerNorm(4, channel=1),
        evenly.BatchNorm2d(4, activation="relu").eval(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_family(layer: nn.Module) -> None:
    """Every layer is one graph, and evaluation too."""
    _same(layer, torch.randn(6, 4, 3, 5), steps=1)


def test_generated_code() -> None:
    """The default backend's generated code around the operator agrees as well, for a changed batch size too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), evenly.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 2, 1))

    _same(model, torch.randn(4, 3, 6, 6), backend="inductor")


def test_nonfinite_batches_are_skipped_in_a_graph() -> None:
    """On the device, without a break."""
    layer = evenly.BatchNorm1d(2)
    graph = _compile(layer)

    graph(torch.tensor([[1.0, torch.inf], [2.0, 3.0]]))

    assert int(layer.skipped_batches) == 1
    assert int(layer.num_batches_tracked) == 0
    assert layer.running_mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
def test_checkpointing_counts_once(inside: bool) -> None:
    """With the checkpoint in the graph, and with the graph in the checkpoint."""
    block = nn.Sequential(nn.Linear(3, 3), evenly.BatchNorm1d(3, activation="relu"), nn.Linear(3, 3))
    plain = copy.deepcopy(block)
    x = torch.randn(8, 3, requires_grad=True)
    plain(x).sum().backward()

    if inside:
        run = _compile(lambda x: checkpoint(block, x, use_reentrant=False))
        run(x).sum().backward()
    else:
        graph = _compile(block)
        checkpoint(graph, x, use_reentrant=False).sum().backward()

    assert int(block[1].num_batches_tracked) == 1
    torch.testing.assert_close(block[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(block[0].weight.grad, plain[0].weight.grad)


@pytest.mark.parametrize("masked", [True, False])
def test_operators_are_sound(masked: bool) -> None:
    """torch.library's own checks: schema, fake tensors, autograd registration, dynamic shapes."""
    x, r = (torch.randn(4, 3, 5, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(3, requires_grad=True) for _ in range(2))
    mask = (torch.rand(20) > 0.3).float() if masked else None
    norm = ([1, 4, 3, 5, 3, 5], [0, 1, 2], 1e-5, "relu", 0.0, True, masked, True)
    arguments = (x, weight, bias, r, mask, None, None, *norm)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(torch.ops.evenly.normalize.default, arguments)
        torch.library.opcheck(torch.ops.evenly.counts.default, (x.detach(),))
