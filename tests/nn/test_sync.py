"""Statistics shared by processes: k of them with parts of the data equal one with all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.processes import Processes
from torch import Tensor

import evenly

C = 3
# The samples of each process.
CUTS = {
    "even": (4, 4), "uneven": (7, 1), "first empty": (0, 8), "last empty": (8, 0),
    "three": (4, 1, 3), "one of three empty": (5, 0, 3), "two of three empty": (0, 8, 0),
}  # fmt: skip
MASKS = ("none", "bool", "weights", "own all masked")
# Float64 sums of a few hundred terms, in another order.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes, for the whole module."""
    with Processes(2) as group:
        yield group


@pytest.fixture(scope="module")
def three() -> Iterator[Processes]:
    """Three processes, for the whole module."""
    with Processes(3) as group:
        yield group


def data(mask: str, cut: tuple[int, ...]) -> dict[str, Tensor]:
    """All data: input, residual, mask, the gradient of the output, the direction of a second derivative."""
    g = torch.Generator().manual_seed(1)
    shape = (sum(cut), C, 2, 3)
    x, residual, dy, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(4))
    tensors = {"x": 5 + 2 * x, "residual": residual, "dy": dy, "v": v}
    places = (shape[0], *shape[2:])
    if mask == "bool":
        tensors["mask"] = torch.rand(places, generator=g) < 0.6
    elif mask == "weights":
        tensors["mask"] = torch.randint(0, 4, places, generator=g).double()
    elif mask == "own all masked":
        tensors["mask"] = torch.ones(places, dtype=torch.bool)
        tensors["mask"][: cut[0]] = False
    return tensors


def layer_of(sync: bool, **settings: Any) -> evenly.BatchNorm:
    """A float64 layer with weights of its own."""
    layer = evenly.BatchNorm(C, sync=sync, dtype=torch.float64, **settings)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    return layer


def everything(tensors: dict[str, Tensor], sync: bool, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Output, running statistics, all first and second derivatives of a call."""
    layer = layer_of(sync, **settings)
    x, residual = tensors["x"].clone().requires_grad_(), tensors["residual"].clone().requires_grad_()
    y = layer(x, residual=residual, mask=tensors.get("mask"))
    dy = tensors["dy"].clone().requires_grad_()
    inputs = [x, residual, layer.weight, layer.bias]
    once = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    again = torch.autograd.grad(y, inputs, dy, create_graph=True)
    twice = torch.autograd.grad((again[0] * tensors["v"]).sum(), [dy, x, layer.weight])
    found = dict(zip(("dx", "dresidual", "dweight", "dbias"), once, strict=True))
    found |= dict(zip(("dx'", "dresidual'", "dweight'", "dbias'"), again, strict=True))
    found |= dict(zip(("ddy", "ddx", "ddweight"), twice, strict=True))
    found |= dict(layer.named_buffers(), y=y)
    return {name: value.detach() for name, value in found.items()}


def part(rank: int, mask: str, cut: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Tensor]:
    """One process's part of `everything`."""
    start = sum(cut[:rank])
    own = {name: t[start : start + cut[rank]] for name, t in data(mask, cut).items()}
    return everything(own, True, settings)


def of_all(parts: list[dict[str, Tensor]], name: str) -> Tensor:
    """The whole's value of ``name`` from the parts': weights' gradients add, statistics agree, the rest joins."""
    values = [p[name] for p in parts]
    if "weight" in name or "bias" in name:
        return torch.stack(values).sum(0)
    if name.startswith("running") or "batches" in name:
        assert all(torch.equal(values[0], v) for v in values), f"{name} differs between processes"
        return values[0]
    return torch.cat(values)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_parts_equal_the_whole(two: Processes, three: Processes, cut: tuple[int, ...], mask: str) -> None:
    """Output, first and second derivatives and running statistics equal one process's on all data, to 1e-12."""
    settings = {"activation": "gelu", "zero_masked": mask == "bool"}
    parts = (two if len(cut) == 2 else three).run(part, mask, cut, settings)

    whole = everything(data(mask, cut), False, settings)
    for name, expected in whole.items():
        torch.testing.assert_close(of_all(parts, name), expected, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    assert whole["num_batches_tracked"] == (0 if cut == (8, 0) and mask == "own all masked" else 1)
