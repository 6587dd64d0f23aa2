"""Every subset of gradients that may be asked for × layer × extras × backend: each equals the definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evenly

SHAPE = (4, 6, 5, 7)
WHO = ("x", "weight", "bias", "residual")
SUBSETS = list(chain.from_iterable(combinations(WHO, n) for n in range(1, len(WHO) + 1)))
Layer = Callable[..., nn.Module]
LAYERS: dict[str, Layer] = {
    "batch": lambda **o: evenly.BatchNorm2d(6, **o),
    "evaluated": lambda **o: evenly.BatchNorm2d(6, **o).eval(),
    "ghosts": lambda **o: evenly.BatchNorm2d(6, ghosts=2, **o),
    "instance": lambda **o: evenly.InstanceNorm2d(6, affine=True, **o),
    "group": lambda **o: evenly.GroupNorm(3, 6, **o),
    "layer": lambda **o: evenly.LayerNorm(7, **o),
    "over channels": lambda **o: evenly.LayerNorm(6, channel=1, **o),
    "rms": lambda **o: evenly.RMSNorm(7, **o),
}
MASKED = ("batch", "evaluated", "ghosts", "instance", "group")


def _tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = {name: torch.randn(SHAPE, generator=generator) for name in ("x", "residual", "dy")}
    return {name: t.to(dtype) for name, t in drawn.items()}


def _gradients(layer: nn.Module, who: tuple[str, ...], given: dict[str, Tensor], **call: Any) -> list[Tensor]:
    leaves: dict[str, Any] = {"x": given["x"].clone(), "residual": given["residual"].clone()}
    leaves |= {name: getattr(layer, name, None) for name in ("weight", "bias")}
    for name, t in leaves.items():
        if t is not None:
            t.requires_grad_(name in who)
    residual = {"residual": leaves["residual"]} if call.pop("added") else {}
    y = layer(leaves["x"], **residual, **call)
    wanted = [t for name, t in leaves.items() if name in who and t is not None and (name != "residual" or residual)]
    return list(torch.autograd.grad(y, wanted, given["dy"])) if wanted else []


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("masking", [None, "weighs", "zeroes"])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "elu", "gelu"])
@pytest.mark.parametrize("name", LAYERS)
def test_any_gradients_may_be_asked_for(name: str, activation: str | None, masking: str | None, backend: str) -> None:
    """Whoever needs a gradient, alone or with others, gets the definition's, with and without a residual."""
    if masking is not None and name not in MASKED:
        pytest.skip("this norm takes no mask")
    options: dict[str, Any] = {"activation": activation}
    call: dict[str, Any] = {}
    if masking is not None:
        options["zero_masked"] = masking == "zeroes"
        call["mask"] = torch.rand(SHAPE[0], *SHAPE[2:], generator=torch.Generator().manual_seed(1)) > 0.3
    for added in (False, True):
        for who in SUBSETS:
            if who == ("residual",) and not added:
                continue
            with evenly.use_backend("reference"):
                truth = _gradients(LAYERS[name](**options).double(), who, _tensors(torch.float64), added=added, **call)
            with evenly.use_backend(backend):
                found = _gradients(LAYERS[name](**options), who, _tensors(torch.float32), added=added, **call)

            for one, other in zip(found, truth, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "elu", "gelu"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("zeroes", [False, True])
def test_second_derivatives_with_a_mask_and_given_statistics(activation: str | None, fixed: bool, zeroes: bool) -> None:
    """Gradients of gradients are those of finite differences, whatever was saved in place of the input."""
    layer = evenly.BatchNorm1d(2, activation=activation, zero_masked=zeroes).double().eval()  # type: ignore[arg-type]
    layer.requires_grad_(not fixed)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    generator = torch.Generator().manual_seed(0)
    x, r = (torch.randn(2, 2, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))

    assert torch.autograd.gradcheck(lambda a, b: layer(a, residual=b, mask=mask), (x, r))
    assert torch.autograd.gradgradcheck(lambda a, b: layer(a, residual=b, mask=mask), (x, r))
