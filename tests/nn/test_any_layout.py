"""Shapes, memory layouts, types, activations and modes drawn at random, against torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import evenly
from evenly.backends.reference import apply_activation
from evenly.core.activation import KINDS, Activation

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 4e-2, torch.float16: 6e-3}


@st.composite
def laid_out(draw: st.DrawFn) -> Tensor:
    """A tensor (N, C, ...) in any order of axes in memory, dense, sliced or expanded."""
    shape = [draw(st.integers(2, 5)), draw(st.sampled_from([2, 4, 6])), *draw(st.lists(st.integers(1, 5), max_size=3))]
    order = draw(st.permutations(range(len(shape))))
    x = torch.randn([shape[axis] for axis in order], dtype=torch.float64)
    x = x.permute(sorted(range(len(shape)), key=order.__getitem__))
    kind = draw(st.sampled_from(["dense", "dense", "sliced", "expanded"]))
    if kind == "sliced":
        x = torch.randn([size + 2 for size in shape], dtype=torch.float64)[tuple(slice(1, -1) for _ in shape)]
    return x[:1].expand(shape) if kind == "expanded" and len(shape) > 2 else x


def _layers(name: str, channels: int, places: int, activation: str | None) -> tuple[nn.Module, nn.Module]:
    arguments: tuple[Any, ...] = {"GroupNorm": (2, channels), "LayerNorm": (places,)}.get(name, (channels,))
    exact = getattr(nn, "BatchNorm1d" if name == "BatchNorm" else name)(*arguments, dtype=torch.float64)
    ours = getattr(evenly, name)(*arguments, dtype=torch.float64, activation=activation)
    for parameter in exact.parameters():
        nn.init.normal_(parameter, mean=0.7)
    ours.load_state_dict(exact.state_dict())
    return exact, ours


@pytest.mark.parametrize("name", ["BatchNorm", "GroupNorm", "LayerNorm"])
@given(
    x=laid_out(),
    dtype=st.sampled_from(list(TOLERANCE)),
    activation=st.sampled_from(list(KINDS)),
    training=st.booleans(),
    twisted=st.booleans(),
)
def test_any_tensor(
    name: str, x: Tensor, dtype: torch.dtype, activation: str | None, training: bool, twisted: bool
) -> None:
    """Output and gradients are the definition's, also with a residual that lies otherwise in memory."""
    exact, ours = _layers(name, x.shape[1], x.shape[-1], activation)
    x = x.to(dtype)
    residual = torch.randn(x.shape[::-1]).to(dtype).permute(*range(x.ndim - 1, -1, -1)) if twisted else None
    leaf, wide = x.detach().requires_grad_(), x.detach().double().requires_grad_()

    y = ours.to(dtype).train(training)(leaf, residual=residual)
    flat = wide.flatten(2) if name == "BatchNorm" and x.ndim > 2 else wide
    z = exact.train(training)(flat).reshape(x.shape)
    expected = apply_activation(z if residual is None else z + residual.double(), Activation.of(activation))

    assert y.dtype == dtype
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(y.double() / scale, expected / scale, rtol=0, atol=TOLERANCE[dtype])
    if dtype == torch.float64:
        dy = torch.randn_like(expected)
        (dx,) = torch.autograd.grad(y, leaf, dy)
        (exact_dx,) = torch.autograd.grad(expected, wide, dy)
        torch.testing.assert_close(dx, exact_dx, rtol=1e-7, atol=1e-7)
