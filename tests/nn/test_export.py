"""What leaves for a program without evenly: torch's own operators; and torch.fx's leaves."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import evenly
from evenly import functional as F

# torch's exporters warn of torch's own deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Net(nn.Module):
    """Every layer of the family, an activation and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.batch = evenly.BatchNorm2d(4, activation="relu")
        self.group = evenly.GroupNorm(2, 4, activation="silu")
        self.instance = evenly.InstanceNorm2d(4, affine=True)
        self.layer = evenly.LayerNorm(6, activation="gelu")
        self.channels = evenly.LayerNorm(4, channel=1)
        self.rms = evenly.RMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.batch(x, residual=x)
        y = self.instance(self.group(y))
        return self.rms(self.channels(self.layer(y)))  # type: ignore[no-any-return]


def _net(training: bool) -> tuple[Net, Tensor]:
    net, x = Net(), torch.randn(4, 3, 6, 6)
    net(x * 2 + 1)
    return net.train(training), x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_export_holds_torchs_operators_alone(training: bool, strict: bool) -> None:
    """The exported program has no operator of ours, gives the same values, and in training updates its buffers."""
    net, x = _net(training)

    program = torch.export.export(net, (x,), strict=strict)

    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("evenly" in name for name in names)
    assert any("batch_norm" in name for name in names)
    twin = copy.deepcopy(net)  # an exported module shares its buffers with the original
    exported = program.module()
    torch.testing.assert_close(exported(x), twin(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported.batch.running_mean, twin.batch.running_mean)
    torch.testing.assert_close(exported.batch.running_var, twin.batch.running_var)
    assert int(net.batch.num_batches_tracked) == 1 + training


def test_export_with_any_batch_size_and_masks() -> None:
    """A dynamic batch stays dynamic; what torch has no operator for leaves as plain operations."""
    layer = evenly.BatchNorm1d(3, ghosts=1).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (torch.randn(4, 3),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 3)
    torch.testing.assert_close(program.module()(x), layer(x))

    masked = torch.export.export(evenly.BatchNorm1d(3), (torch.randn(4, 3, 5), None, torch.rand(4, 5) > 0.5))
    assert not any("evenly" in str(node.target) for node in masked.graph.nodes)


def _onnx(net: nn.Module, x: Tensor, path: Path, *, dynamo: bool = True, **options: Any) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), path, dynamo=dynamo, verbose=False, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})  # type: ignore[no-any-return]


def test_onnx_for_evaluation(tmp_path: Path) -> None:
    """onnxruntime gives the same values from the exported file."""
    net, x = _net(training=False)

    (y,) = _onnx(net, x, tmp_path / "net.onnx")

    torch.testing.assert_close(torch.from_numpy(y), net(x), rtol=1e-3, atol=1e-4)


def test_onnx_for_training(tmp_path: Path) -> None:
    """Exported in training mode, batch norm normalises by the batch in onnxruntime too.

    By the older exporter: the newer one drops training mode, of torch's own layer as of ours.
    """
    layer, x = evenly.BatchNorm2d(3, activation="relu"), torch.randn(4, 3, 5, 5) * 3 + 7
    expected = evenly.BatchNorm2d(3, activation="relu")(x)

    training = torch.onnx.TrainingMode.TRAINING
    y = _onnx(layer, x, tmp_path / "layer.onnx", dynamo=False, training=training)[0]
    newer = _onnx(nn.BatchNorm2d(3), x, tmp_path / "newer.onnx", dynamo=True, training=training)[0]

    assert abs(newer.mean()) > 1  # not normalised by the batch
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_a_jit_trace_can_be_saved(training: bool) -> None:
    """The trace holds torch's operators, is saved, loaded and gives the same values."""
    net, x = _net(training)
    reference, _ = _net(training)
    reference.load_state_dict(net.state_dict())

    traced = torch.jit.trace(net, x, check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)

    torch.testing.assert_close(torch.jit.load(file)(x), reference(x), rtol=1e-4, atol=1e-5)
    assert "evenly::" not in str(traced.inlined_graph)


def test_fx_keeps_each_layer_a_leaf() -> None:
    """symbolic_trace writes one call_module for a layer, as for torch.nn's, in either mode."""
    net, x = _net(training=False)

    graph = torch.fx.symbolic_trace(net)

    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == ["conv", "batch", "group", "instance", "layer", "channels", "rms"]
    torch.testing.assert_close(graph(x), net(x))
    assert torch.equal(graph.train()(x), graph(x))
    assert int(net.batch.num_batches_tracked) == 3


def test_fx_keeps_a_function_one_call() -> None:
    """A functional is one node, not the arithmetic in it."""

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.group_norm(x, 2, activation="relu")  # type: ignore[no-any-return]

    graph = torch.fx.symbolic_trace(Functional())

    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [F.group_norm]
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(graph(x), F.group_norm(x, 2, activation="relu"))
