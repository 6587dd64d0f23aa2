"""First and second derivatives against numeric differences, in float64, for the whole family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import evenly
from evenly import functional as F
from evenly.core.activation import KINDS

Norm = Callable[..., Tensor]

FAMILY: dict[str, tuple[tuple[int, ...], tuple[int, ...], Norm]] = {
    "batch": ((4, 3, 2), (3,), lambda x, w, b, **k: F.batch_norm(x, None, None, w, b, training=True, **k)),
    "ghosts": ((5, 3, 2), (3,), lambda x, w, b, **k: F.batch_norm(x, None, None, w, b, training=True, ghosts=2, **k)),
    "evaluation": (
        (4, 3, 2),
        (3,),
        lambda x, w, b, **k: F.batch_norm(x, x.new_zeros(3), x.new_ones(3) * 0.5, w, b, **k),
    ),
    "instance": ((2, 3, 4), (3,), lambda x, w, b, **k: F.instance_norm(x, None, None, w, b, **k)),
    "group": ((2, 4, 3), (4,), lambda x, w, b, **k: F.group_norm(x, 2, w, b, **k)),
    "layer": ((2, 3, 4), (4,), lambda x, w, b, **k: F.layer_norm(x, (4,), w, b, **k)),
    "channels": ((2, 4, 3), (4,), lambda x, w, b, **k: F.layer_norm(x, (4,), w, b, channel=1, **k)),
    "rms": ((2, 3, 4), (4,), lambda x, w, b, **k: F.rms_norm(x, (4,), w, **k) + 0 * b.sum()),
}


def _inputs(name: str, *, residual: bool = False) -> tuple[Tensor, ...]:
    shape, affine, _ = FAMILY[name]
    sizes = [shape, affine, affine] + [shape] * residual
    return tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("activation", list(KINDS))
def test_both_derivatives(name: str, activation: str | None, backend: str) -> None:
    """Gradients of input, weight, bias and residual are exact, and so are their gradients."""

    def norm(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        return FAMILY[name][2](x, w, b, residual=r, activation=activation)

    with evenly.use_backend(backend):
        inputs = _inputs(name, residual=True)

        assert gradcheck(norm, inputs, fast_mode=True)
        assert gradgradcheck(norm, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["batch", "ghosts", "evaluation", "instance", "group", "channels"])
def test_layouts(name: str) -> None:
    """The same holds for channels last, and the gradient arrives in any layout."""
    shape, affine, norm = FAMILY[name]
    x = torch.randn(shape[0], *shape[2:], shape[1], dtype=torch.float64).movedim(-1, 1).requires_grad_()
    w, b = (torch.randn(affine, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def laid_out(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return norm(x, w, b, activation="silu").contiguous()

    assert gradcheck(laid_out, (x, w, b), fast_mode=True)
    assert gradgradcheck(laid_out, (x, w, b), fast_mode=True)


@pytest.mark.parametrize("name", ["batch", "ghosts", "instance", "group"])
@pytest.mark.parametrize("zero_masked", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_masks(name: str, zero_masked: bool, activation: str | None) -> None:
    """Under a mask with weights, too."""
    shape, _, norm = FAMILY[name]
    weights = torch.rand(shape[0], *shape[2:], dtype=torch.float64).round(decimals=1)
    weights[0, 0] = 0.0
    masked = partial(norm, mask=weights, zero_masked=zero_masked, activation=activation)

    assert gradcheck(masked, _inputs(name), fast_mode=True)
    assert gradgradcheck(masked, _inputs(name), fast_mode=True)


def test_a_tensor_used_twice() -> None:
    """A tensor that is input and residual at once gets the sum of two gradients, twice differentiable."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def twice(x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True, residual=x, activation="elu")

    assert gradcheck(twice, (x,))
    assert gradgradcheck(twice, (x,))


@pytest.mark.parametrize("channels_last", [False, True])
def test_expanded_gradient_of_given_statistics(channels_last: bool) -> None:
    """With fixed statistics and weights nothing of the input is kept, and its layout is still known."""
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    mean, var = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.5
    dy = torch.randn(3, 1, 1, dtype=torch.float64).expand(2, 3, 4, 5)

    F.batch_norm(x, mean, var).backward(dy)

    assert x.grad is not None
    torch.testing.assert_close(x.grad, dy / (var + 1e-5).sqrt().view(3, 1, 1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, inside its jvp
def test_forward_mode() -> None:
    """Forward-mode derivatives are those of the formula."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def norm(x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True, activation="silu")

    assert gradcheck(norm, (x,), check_forward_ad=True, check_backward_ad=False)
