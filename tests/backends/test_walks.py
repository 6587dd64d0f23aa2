"""What the kernels' walks take and how exact they are: sizes of 0 and 1, hostile data, layer norm over channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_functional

import evenly
from evenly import functional

pytest.importorskip("evenly.backends.cpu", reason="the kernels are not built")
SIZES = (0, 1, 3, 16)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def layer(*kept: int, channel: int | None = None) -> Norm:
    """Layer norm over axes of these sizes."""

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(
            x, kept, weight.reshape(kept), bias.reshape(kept), 0.1, channel=channel, activation="silu"
        )

    return norm


def norms(shape: tuple[int, ...], channel: int) -> Iterator[tuple[str, int, Norm]]:
    """Every way to choose which elements of a tensor share statistics: name, channels, and the norm."""
    channels = shape[channel]
    for ghosts in (1, 3):
        if channel != 0 and shape[0] % ghosts == 0:
            yield (
                f"batch, {ghosts} ghosts",
                channels,
                lambda x, w, b, ghosts=ghosts: functional.batch_norm(
                    x, None, None, w, b, True, 0.1, 0.1, ghosts=ghosts, channel=channel, activation="silu"
                ),
            )
    for groups in (1, 3):
        if channels % groups == 0 and channel != 0:
            yield (
                f"{groups} groups",
                channels,
                lambda x, w, b, groups=groups: functional.group_norm(
                    x, groups, w, b, 0.1, channel=channel, activation="silu"
                ),
            )
    if channel != 0:
        yield (
            "instance",
            channels,
            lambda x, w, b: functional.instance_norm(x, None, None, w, b, eps=0.1, channel=channel, activation="silu"),
        )
    yield "channels", channels, layer(channels, channel=channel)
    for ndim in range(1, len(shape)):
        kept = shape[-ndim:]
        yield f"last {ndim} axes", prod(kept), layer(*kept)


def outcome(norm: Norm, tensors: list[Tensor], dy: Tensor) -> list[Tensor] | str:
    """Output and gradients, or the refusal."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    try:
        y = norm(*leaves)
    except ValueError as refusal:
        return str(refusal)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_sizes_of_nothing_and_one(ndim: int, dtype: torch.dtype) -> None:
    """Every norm over shapes of 0, 1, 3 and 16 is what the reference gives in float64, both ways."""
    generator = torch.Generator().manual_seed(ndim)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in product(SIZES, repeat=ndim):
        if prod(shape) > 2000 or (ndim == 4 and shape.count(16) > 1):
            continue
        for channel in range(ndim):
            for name, channels, norm in norms(shape, channel):
                x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
                weight, bias = (torch.randn(channels, generator=generator, dtype=statistics) for _ in range(2))
                found = outcome(norm, [x, weight, bias], dy)
                with evenly.use_backend("reference"):
                    truth = outcome(norm, [x.double(), weight.double(), bias.double()], dy.double())
                if isinstance(truth, str):
                    assert found == truth, (shape, channel, name)
                    continue
                for one, other in zip(found, truth, strict=True):
                    size = 1 + other.abs().max().item() if other.numel() else 1
                    torch.testing.assert_close(
                        one.double(), other, rtol=0, atol=ROUNDING[dtype] * size, msg=f"{shape}, {channel}, {name}"
                    )


def hostile(count: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Values of one set whose first elements, or those at likely places of samples, lie far from the rest."""
    plain = torch.randn(count, generator=generator)
    spread = [i * min(count, 2048) // 16 for i in range(16)]
    for far in (1e2, 1e4, 1e6):
        for name, places in {
            "first": list(range(16)),
            "one first": [0],
            "one anywhere": [count // 2 + 3],
            "first half less one": list(range(count // 2 - 1)),
            "at the samples": spread,
            "at every 16th": list(range(0, count, 16)),
        }.items():
            x = plain.clone()
            x[places] = far
            yield f"{name} {far:g}", x
    for offset in (300.0, 1e4, 1e6):
        x = plain + offset
        x[:16] = 0
        yield f"dead corner on {offset:g}", x
        x = plain + offset
        x[spread] = 0
        yield f"dead samples on {offset:g}", x


LAYOUTS = {
    "planes": (16, 2, 64, 64),
    "few planes": (2, 3, 40, 41),
    "short planes": (64, 5, 7, 7),
    "medium planes": (16, 5, 14, 14),
    "columns": (16, 12, 12, 5),
    "dense": (1000, 20),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_placement_of_outliers_spoils_the_variance(layout: str, threads: int, dtype: torch.dtype) -> None:
    """The variance of hostile channels is off by at most 4 times what torch's is, or 8 roundings of float32."""
    shape = LAYOUTS[layout]
    channel = len(shape) - 1 if layout == "columns" else 1
    channels, generator = shape[channel], torch.Generator().manual_seed(0)
    for name, values in hostile(prod(shape) // channels, generator):
        places = [n for a, n in enumerate(shape) if a != channel]
        x = torch.stack([values.roll(5 * c * (c % 2)).reshape(places) for c in range(channels)], channel).to(dtype)
        exact = x.double().movedim(channel, 1).transpose(0, 1).flatten(1).var(1)
        found, peer = torch.ones(channels), torch.ones(channels)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        functional.batch_norm(x, torch.zeros(channels), found, training=True, momentum=1.0, channel=channel)
        torch.set_num_threads(before)
        plain = x.float().movedim(channel, 1).contiguous()
        torch_functional.batch_norm(plain, torch.zeros(channels), peer, training=True, momentum=1.0)

        allowed = 4 * ((peer - exact) / exact).abs().clamp_min(2 * torch.finfo(torch.float32).eps)
        off = ((found - exact) / exact).abs()
        assert (off <= allowed).all(), (name, off, allowed)


@pytest.mark.parametrize("over", ["rows", "channels"])
@pytest.mark.parametrize("count", [48, 1000, 4096])
def test_no_placement_of_outliers_spoils_a_row(over: str, count: int) -> None:
    """Layer norm of hostile rows, and over hostile channels, errs at most 4 times as far as torch's, or 8 roundings."""
    generator = torch.Generator().manual_seed(1)
    rows = [row for _, row in hostile(count, generator)]
    x = torch.stack(rows)
    exact = torch_functional.layer_norm(x.double(), [count])
    peer = torch_functional.layer_norm(x, [count]).double()
    if over == "rows":
        y = functional.layer_norm(x, [count])
    else:
        y = functional.layer_norm(x.t()[None], [count], channel=1)[0].t()

    off, allowed = (y.double() - exact).abs().amax(1), 4 * (peer - exact).abs().amax(1)
    assert (off <= allowed.clamp_min(8 * torch.finfo(torch.float32).eps * exact.abs().amax(1))).all(), (off, allowed)


@pytest.mark.parametrize("shape", [(3, 37, 10, 13), (2, 300, 49), (1, 8, 3000), (70, 5, 1)])
@pytest.mark.parametrize("threads", [1, 2])
def test_layer_norm_over_channels_has_a_walk_of_its_own(shape: tuple[int, ...], threads: int) -> None:
    """It is torch's of the permuted tensor, both ways, bit for bit equal from call to call."""
    generator = torch.Generator().manual_seed(2)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = torch_functional.layer_norm(leaves[0].movedim(1, -1), [shape[1]], *leaves[1:]).movedim(-1, 1)
    truth = [y, *torch.autograd.grad(y, leaves, dy.double())]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(x, [shape[1]], weight, bias, channel=1)

    found, again = (outcome(call, [x, weight, bias], dy) for _ in range(2))
    torch.set_num_threads(before)

    for one, other, exact in zip(found, again, truth, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=2e-6 * exact.abs().max().item())
