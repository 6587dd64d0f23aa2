"""torch.nn's layers by another name: arguments, values, state, errors, copies, types."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import evenly
from evenly.nn.tracked import adopt

CASES: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "BatchNorm1d": ((4,), (6, 4, 5)),
    "BatchNorm2d": ((4,), (6, 4, 5, 3)),
    "BatchNorm3d": ((4,), (3, 4, 2, 5, 3)),
    "InstanceNorm1d": ((4,), (6, 4, 5)),
    "InstanceNorm2d": ((4,), (6, 4, 5, 3)),
    "InstanceNorm3d": ((4,), (3, 4, 2, 5, 3)),
    "GroupNorm": ((2, 4), (6, 4, 5, 3)),
    "LayerNorm": (((5, 3),), (6, 4, 5, 3)),
    "RMSNorm": (((3,),), (6, 4, 5, 3)),
}


def _pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    arguments = CASES[name][0]
    torchs, ours = getattr(nn, name)(*arguments, **options), getattr(evenly, name)(*arguments, **options)
    with torch.no_grad():
        for parameter in torchs.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return torchs, ours


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.precise)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_values_and_gradients(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Training and evaluation, contiguous and channels last, whose format is kept."""
    torchs, ours = _pair(name)
    shape = CASES[name][1]
    x = torch.randn(shape).to(dtype)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    torchs, ours = torchs.to(dtype), ours.to(dtype)
    definition = copy.deepcopy(torchs).double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2}[dtype]
    for training in (True, False):
        grads = []
        for layer, t in ((definition.train(training), x.double()), (ours.train(training), x.clone())):
            t.requires_grad_()
            y = layer(t)
            dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(shape)
            grads.append([y, *torch.autograd.grad(y, [t, *layer.parameters()], dy, retain_graph=True)])
        assert grads[1][0].dtype == dtype
        if "Layer" not in name and "RMS" not in name:
            assert grads[1][0].stride() == x.stride()
        for expected, got in zip(*grads, strict=True):
            scale = expected.abs().max().clamp(min=1)
            torch.testing.assert_close((got / scale).double(), expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_arguments_state_and_text(name: str) -> None:
    """Positional arguments and defaults are torch's, state loads both ways, and extra_repr begins as torch's."""
    torchs, ours = _pair(name)
    theirs = [p for p in inspect.signature(type(torchs)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    mine = list(inspect.signature(type(ours)).parameters.values())[: len(theirs)]

    assert isinstance(ours, getattr(nn, name))
    assert [p.name for p in mine] == [p.name for p in theirs]
    assert [p.default for p in mine] == [p.default for p in theirs]
    torchs.load_state_dict(ours.state_dict(), strict=True)
    assert ours._version == torchs._version
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert ours.extra_repr() == torchs.extra_repr()


def test_old_state_dicts_load() -> None:
    """A state_dict of version 1, without a counter, loads as it does in torch."""
    state = {k: v for k, v in nn.BatchNorm1d(3).state_dict().items() if k != "num_batches_tracked"}

    assert evenly.BatchNorm1d(3).load_state_dict(state, strict=True)
    assert str(evenly.BatchNorm1d(3).load_state_dict(state, strict=False)) == "<All keys matched successfully>"


@pytest.mark.parametrize("name", CASES)
def test_copies_and_pickles(name: str) -> None:
    """deepcopy, pickle and torch.nn's instances under our class compute the same; extras survive."""
    torchs, ours = _pair(name)
    x = torch.randn(CASES[name][1])
    extra = getattr(evenly, name)(*CASES[name][0], activation="leaky_relu", activation_args=(0.3,))
    expected = ours(x)

    adopted = adopt(torchs, type(ours))
    for layer in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), adopted):
        torch.testing.assert_close(layer(x), expected)
    again = pickle.loads(pickle.dumps(extra))
    torch.testing.assert_close(again(x), extra(x))
    assert "activation_args=(0.3,)" in repr(again)


@pytest.mark.parametrize("name", CASES)
def test_meta_and_uninitialized(name: str) -> None:
    """Shapes are inferred on the meta device; skip_init and to_empty make layers that can be filled."""
    layer = getattr(evenly, name)(*CASES[name][0], device="meta")
    x = torch.randn(CASES[name][1])

    assert layer(x.to("meta")).shape == x.shape
    filled = layer.to_empty(device="cpu")
    filled.load_state_dict(getattr(evenly, name)(*CASES[name][0]).state_dict())
    torch.testing.assert_close(filled(x), getattr(evenly, name)(*CASES[name][0])(x))
    assert nn.utils.skip_init(getattr(evenly, name), *CASES[name][0]).state_dict().keys() == layer.state_dict().keys()


@given(training=st.booleans(), track=st.booleans(), affine=st.booleans(), later=st.sampled_from([None, True, False]))
def test_odd_states_of_tracking(training: bool, track: bool, affine: bool, later: bool | None) -> None:
    """Whatever track_running_stats is, at construction or set later, statistics are chosen as torch does."""
    torchs, ours = (
        library.BatchNorm1d(3, affine=affine, track_running_stats=track).train(training) for library in (nn, evenly)
    )
    x = torch.randn(5, 3) + 2
    for layer in (torchs, ours):
        if later is not None and (track or not later):
            layer.track_running_stats = later

    torch.testing.assert_close(ours(x), torchs(x))
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("name", ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "InstanceNorm2d"])
def test_channels_from_the_first_input(name: str) -> None:
    """num_features=None waits for an input, or a state_dict, and is then the layer itself."""
    cls = getattr(evenly, name)
    x = torch.randn(4, 6) if name == "BatchNorm1d" else torch.randn(4, 6, 3, 3)
    waiting = cls(None, affine=True, activation="relu", weight_init=0.5)
    from_state = cls(None, affine=True, activation="relu")
    ready = cls(6, affine=True, activation="relu", weight_init=0.5)

    y = pickle.loads(pickle.dumps(waiting))(x)
    waiting(x)
    from_state.load_state_dict(ready.state_dict())

    torch.testing.assert_close(y, ready(x))
    assert type(waiting) is cls
    assert repr(waiting) == repr(ready)
    assert from_state.weight.shape == (6,)
    torch.testing.assert_close(from_state(x), y)


def test_scale_bias_and_initial_values() -> None:
    """Weight and bias are separate, start where asked, and start there again."""
    for name, (arguments, shape) in CASES.items():
        cls = getattr(evenly, name)
        options = {"affine": True} if "Instance" in name else {}
        layer = cls(*arguments, **options, weight_init=0.0)
        assert not layer.weight.any()
        nn.init.ones_(layer.weight)
        layer.reset_parameters()
        assert not layer.weight.any()
        if name != "RMSNorm":
            half = cls(*arguments, **options, scale=False, bias_init=2.0)
            plain = cls(*arguments, **options, scale=False, bias=False)
            x = torch.randn(shape)
            assert half.weight is None
            assert plain.bias is None
            torch.testing.assert_close(half(x), plain(x) + 2)


def test_zero_centered_rms_norm() -> None:
    """The layer scales by 1 + weight; at first, and with all weights 0, by 1."""
    x = torch.randn(3, 8)
    layer = evenly.RMSNorm(8, zero_centered=True)

    torch.testing.assert_close(layer(x), nn.RMSNorm(8)(x))
    assert not layer.weight.any()
    nn.init.constant_(layer.weight, 0.5)
    torch.testing.assert_close(layer(x), nn.RMSNorm(8)(x) * 1.5)


@pytest.mark.parametrize("cls", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_over_the_channels_of_an_image(cls: str, channels_last: bool) -> None:
    """channel=1 equals a permute, the norm, and a permute back; the memory format is kept."""
    x = torch.randn(2, 8, 3, 5)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    layer = getattr(evenly, cls)(8, channel=1)

    y = layer(x)

    torch.testing.assert_close(y, getattr(nn, cls)(8)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert y.stride() == x.stride()


def test_any_channel_axis() -> None:
    """channel=-1 is batch norm of (N, H, W, C)."""
    x = torch.randn(4, 3, 5, 6)

    y = evenly.BatchNorm(6, channel=-1)(x)

    torch.testing.assert_close(y, nn.BatchNorm2d(6)(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("name", CASES)
def test_activation_and_residual_everywhere(name: str) -> None:
    """activation(norm(x) + residual), in the common type of both."""
    torchs, _ = _pair(name)
    ours = getattr(evenly, name)(*CASES[name][0], activation="silu")
    ours.load_state_dict(torchs.state_dict())
    x, residual = torch.randn(CASES[name][1]).bfloat16(), torch.randn(CASES[name][1])

    y = ours(x, residual=residual)

    assert y.dtype == torch.float32
    expected = nn.functional.silu(torchs(x.float()) + residual)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: evenly.BatchNorm2d(3)(torch.randn(4, 3)), ValueError, "expected 4D input"),
        (lambda: evenly.BatchNorm1d(3)(torch.randn(4, 5)), ValueError, r"must agree \(shape \(5,\)\)"),
        (lambda: evenly.BatchNorm(3)(torch.randn(3)), ValueError, "at least 2 axes"),
        (lambda: evenly.BatchNorm1d(3)(torch.ones(4, 3).long()), TypeError, r"use x.float\(\)"),
        (lambda: evenly.BatchNorm1d(3)(torch.ones(4, 3).cfloat()), TypeError, "torch.view_as_real"),
        (lambda: evenly.LayerNorm(3)(torch.ones(4, 3).to_sparse()), TypeError, r"x.to_dense\(\)"),
        (lambda: evenly.BatchNorm1d(3, eps=-1.0), ValueError, "non-negative"),
        (lambda: evenly.BatchNorm1d(3, eps=0.0)(torch.randn(4, 3)), ValueError, "positive during training"),
        (lambda: evenly.BatchNorm1d(3, activation="tanh"), ValueError, 'known are None, "relu"'),
        (lambda: evenly.GroupNorm(2, 4, activation="relu", activation_args=(1.0,)), ValueError, "no parameter"),
        (lambda: evenly.BatchNorm1d(3, average="mean"), ValueError, "debiased"),
        (lambda: evenly.BatchNorm1d(3)(torch.randn(4, 3), residual=torch.randn(3)), ValueError, "residual has shape"),
        (lambda: evenly.GroupNorm(3, 4), ValueError, "divisible"),
        (lambda: evenly.functional.group_norm(torch.randn(2, 4), 3), ValueError, r"\(1, 2, 4\)"),
        (lambda: evenly.InstanceNorm1d(3)(torch.randn(2, 3, 1)), ValueError, "more than 1 spatial element"),
        (lambda: evenly.LayerNorm(3)(torch.randn(4, 5)), RuntimeError, r"set normalized_shape=\(5,\)"),
        (lambda: evenly.LayerNorm(3, channel=1)(torch.randn(2, 5, 4)), RuntimeError, "over axis 1 alone"),
        (lambda: evenly.functional.batch_norm(torch.randn(4, 3), None, None), ValueError, "training=False"),
    ],
)
def test_wrong_use(make: Any, error: type[Exception], said: str) -> None:
    """An error at once that names the rule, the values and the repair."""
    with pytest.raises(error, match=said):
        make()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_input_is_refused() -> None:
    """Nested tensors have no common shape; the error says how padding and a mask replace them."""
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])

    with pytest.raises(TypeError, match="mask="):
        evenly.BatchNorm1d(3)(nested)


def test_hooks_run() -> None:
    """Forward hooks and full backward hooks see what they see of torch's layer."""
    layer, seen = evenly.BatchNorm1d(3), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, output: seen.append("after"))
    layer.register_full_backward_hook(lambda module, dx, dy: seen.append("backward"))

    layer(torch.randn(4, 3, requires_grad=True)).sum().backward()

    assert seen == ["before", "after", "backward"]


@pytest.mark.precise
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [4, 800])
def test_short_and_long_layer_norms_are_as_precise(dtype: torch.dtype, rows: int) -> None:
    """Whoever computes it: output and gradients within a few roundings of float64's, the weight's included."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(rows, 768, generator=generator).to(dtype) for _ in range(2))
    layer, exact = evenly.LayerNorm(768, dtype=dtype), nn.LayerNorm(768, dtype=torch.float64)
    outcomes = []
    for norm, t in ((layer, x), (exact, x.double())):
        t.requires_grad_()
        y = norm(t)
        outcomes.append([y.detach(), *torch.autograd.grad(y, (t, norm.weight, norm.bias), dy.to(t.dtype))])

    for ours, expected in zip(*outcomes, strict=True):
        error = (ours.double() - expected).abs().max() / expected.abs().max()
        assert float(error) < 2 * torch.finfo(dtype).eps
