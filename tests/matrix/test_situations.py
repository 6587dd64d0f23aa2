"""Every situation × every layer × layout × extras: each cell equals the formula in float64.

A situation is something around a call that must not change a number: hooks on saved tensors, a default
device, a mode, a thread. Most silent faults of the past were one cell of this table.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenly

SHAPE = (4, 6, 9, 5)
LAYERS: dict[str, Callable[[str | None], nn.Module]] = {
    "batch": lambda a: evenly.BatchNorm2d(6, activation=a),  # type: ignore[arg-type]
    "batch, accumulated": lambda a: evenly.BatchNorm2d(6, activation=a, accumulate=2),  # type: ignore[arg-type]
    "ghosts": lambda a: evenly.BatchNorm2d(6, activation=a, ghosts=3),  # type: ignore[arg-type]
    "frozen": lambda a: _frozen(evenly.BatchNorm2d(6, activation=a)),  # type: ignore[arg-type]
    "instance": lambda a: evenly.InstanceNorm2d(6, affine=True, activation=a),  # type: ignore[arg-type]
    "group": lambda a: evenly.GroupNorm(2, 6, activation=a),  # type: ignore[arg-type]
    "layer": lambda a: evenly.LayerNorm((6, 9, 5), activation=a),  # type: ignore[arg-type]
    "layer over channels": lambda a: evenly.LayerNorm(6, channel=1, activation=a),  # type: ignore[arg-type]
    "rms": lambda a: evenly.RMSNorm((9, 5), activation=a),  # type: ignore[arg-type]
}
EXTRAS = ("plain", "ReLU", "residual and ReLU", "mask")
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
Run = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Tensor]


def _frozen(layer: nn.Module) -> nn.Module:
    layer.frozen = True
    layer._buffers["running_mean"].fill_(0.5)  # type: ignore[union-attr]
    return layer


def _hooks(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Callable[[], Any]:
    return lambda: torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _relaid(t: Tensor) -> Tensor:
    """Equal values in another layout."""
    if t.ndim == 4 and t.is_floating_point():
        last = t.is_contiguous()
        return t.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    return torch.stack([t, t], -1)[..., 0] if t.ndim and t.is_floating_point() else t.clone()


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _in_thread(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(layer(*args, **kwargs)))
    thread.start()
    thread.join()
    return found[0]


def _checkpointed(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    y: Tensor = checkpoint(lambda *a: layer(*a, **kwargs), *args, use_reentrant=False)
    return y


def _after_no_grad(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        torch.nn.Module.eval(layer)(*args, **kwargs)
    layer.train()
    y: Tensor = layer(*args, **kwargs)
    return y


def _lazily_negated(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    y: Tensor = layer(torch._neg_view(-args[0]), *args[1:], **kwargs)
    return y


AROUND: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "saved tensors copied": _hooks(lambda t: t.clone(), lambda t: t),
    "saved tensors laid otherwise": _hooks(lambda t: t, _relaid),
    "saved tensors kept on the CPU": lambda: torch.autograd.graph.save_on_cpu(),
    "default device": lambda: torch.device("meta"),
    "default type": _default_dtype,
    "reference": lambda: evenly.use_backend("reference"),
    "native": lambda: evenly.use_backend("native"),
}
RUNS: dict[str, Run] = {
    "thread": _in_thread,
    "checkpoint": _checkpointed,
    "no_grad before": _after_no_grad,
    "lazily negated input": _lazily_negated,
}


def _call(extras: str, layout: torch.memory_format) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, residual, dy = (torch.randn(SHAPE, generator=generator).to(memory_format=layout) for _ in range(3))
    kwargs = {"residual": residual} if "residual" in extras else {}
    if extras == "mask":
        kwargs["mask"] = torch.rand(SHAPE[0], *SHAPE[2:], generator=generator) > 0.3
    return x, kwargs, dy


def _outcome(
    run: Run, layer: nn.Module, given: tuple[Tensor, dict[str, Tensor], Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Output, gradients and buffers of one training step."""
    x, kwargs, dy = given
    x = x.to(dtype).requires_grad_()
    kwargs = {k: v if v.dtype == torch.bool else v.to(dtype).requires_grad_() for k, v in kwargs.items()}
    y = run(layer, (x,), kwargs)
    wanted = [x, *(v for v in kwargs.values() if v.requires_grad), *layer.parameters()]
    gradients = torch.autograd.grad(y, wanted, dy.to(dtype))
    return [y.detach(), *gradients, *(b for b in layer.buffers() if b.is_floating_point())]


def _plainly(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    y: Tensor = layer(*args, **kwargs)
    return y


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("situation", [*AROUND, *RUNS])
def test_a_situation_changes_no_number(situation: str, name: str) -> None:
    """Outputs, gradients and running statistics are those of the formula in float64, plain and channels last."""
    for extras in EXTRAS:
        if extras == "mask" and name in ("layer", "layer over channels", "rms"):
            continue
        for layout in LAYOUTS.values():
            activation = "relu" if "ReLU" in extras else None
            layer = LAYERS[name](activation)
            exact = LAYERS[name](activation).double()
            given = _call(extras, layout)
            with evenly.use_backend("reference"):
                truth = _outcome(_plainly, exact, given, torch.float64)

            with AROUND.get(situation, contextlib.nullcontext)():
                found = _outcome(RUNS.get(situation, _plainly), layer, given, torch.float32)

            for one, other in zip(found, truth, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_batch_of_gradients(name: str) -> None:
    """``is_grads_batched`` and a vectorized jacobian give what one gradient after the other gives."""
    layer, x = LAYERS[name]("relu"), torch.randn(SHAPE, requires_grad=True)
    y = layer(x)
    dys = torch.randn(3, *y.shape)

    together = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)[0]

    for dy, found in zip(dys, together, strict=True):
        expected = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16])
def test_a_counter_of_another_type_is_counted_as_torch_does(dtype: torch.dtype) -> None:
    """An averaged checkpoint's float counter, and a small one inside other memory, which stays as it was."""
    memory = torch.zeros(4, dtype=dtype)
    layer, peer = evenly.BatchNorm2d(6), nn.BatchNorm2d(6)
    layer.num_batches_tracked = memory[1]
    x = torch.randn(SHAPE)
    for _ in range(3):
        layer(x), peer(x)

    assert memory.tolist() == [0, 3, 0, 0]
    torch.testing.assert_close(layer.running_mean, peer.running_mean)


@pytest.mark.parametrize("operator", ["add.Tensor", "mul.Tensor", "sub.Tensor", "sum.dim_IntList", "div.Tensor"])
def test_selective_checkpointing_of_any_operator(operator: str) -> None:
    """Gradients are right and the batch counts once, whichever operators' results are kept."""
    from functools import partial

    from torch.utils.checkpoint import create_selective_checkpoint_contexts as contexts

    packet, _, overload = operator.partition(".")
    kept = getattr(getattr(torch.ops.aten, packet), overload)
    net = nn.Sequential(nn.Linear(6, 6), evenly.BatchNorm1d(6, activation="relu"))
    x = torch.randn(8, 6, requires_grad=True)
    expected = torch.autograd.grad(net(x).sum(), x)[0]
    net[1].reset_running_stats()

    y = checkpoint(net, x, use_reentrant=False, context_fn=partial(contexts, [kept]))
    found = torch.autograd.grad(y.sum(), x)[0]

    torch.testing.assert_close(found, expected)
    assert int(net[1].num_batches_tracked) == 1


def test_autocast_gives_torchs_types() -> None:
    """Under autocast on the CPU a layer's output has the type that torch's has."""
    x = torch.randn(SHAPE).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evenly.BatchNorm2d(6)(x).dtype == nn.BatchNorm2d(6)(x).dtype
        assert evenly.functional.layer_norm(x, (5,)).dtype == F.layer_norm(x, (5,)).dtype


@pytest.mark.parametrize("activation", ["relu", "gelu", None])
@pytest.mark.parametrize("name", LAYERS)
def test_the_residuals_gradient_alone(name: str, activation: str | None) -> None:
    """Where nothing but the residual needs a gradient it is the definition's, and nothing is read that is not there."""
    layer, (x, _, dy) = LAYERS[name](activation).requires_grad_(False), _call("plain", torch.contiguous_format)
    found = []
    for backend in ("auto", "reference"):
        residual = torch.zeros(SHAPE, requires_grad=True)
        with evenly.use_backend(backend):
            found.append(torch.autograd.grad(layer(x, residual=residual), residual, dy)[0])

    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


DYS = {
    "expanded": lambda t: t[:1, :1, :1, :1].expand(SHAPE),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "a slice": lambda t: torch.stack([t, t], -1)[..., 0],
}


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("layout", DYS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_of_any_layout(name: str, layout: str, backend: str) -> None:
    """Gradients that arrive expanded, sliced or channels last are read as torch reads them."""
    layer, (x, _, dy) = LAYERS[name](None), _call("plain", torch.contiguous_format)
    found = []
    for chosen in (backend, "reference"):
        leaf = x.clone().requires_grad_()
        with evenly.use_backend(chosen):
            found.append(torch.autograd.grad(layer(leaf), [leaf, *layer.parameters()], DYS[layout](dy)))

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_an_odd_input_does_not_choose_the_kernel_of_later_ones() -> None:
    """A lazily negated input, seen first, leaves the plan of ordinary ones of its shape as it is."""
    from evenly.nn import plan

    plan._PLANS.clear()
    layer = evenly.GroupNorm(2, 6)
    layer(torch._neg_view(torch.randn(SHAPE)))
    layer(torch.randn(SHAPE))
    alone = {p.kernel.name for p in plan._PLANS.values()}
    plan._PLANS.clear()
    layer(torch.randn(SHAPE))

    assert {p.kernel.name for p in plan._PLANS.values()} <= alone


@pytest.mark.parametrize("zero_masked", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "silu"])
def test_given_statistics_a_fixed_weight_a_residual_and_a_mask(activation: str, zero_masked: bool) -> None:
    """The activation's slope enters once, whatever is saved in place of the input."""
    layer = evenly.BatchNorm2d(6, activation=activation, zero_masked=zero_masked)  # type: ignore[arg-type]
    layer.eval().requires_grad_(False)
    x, kwargs, dy = _call("mask", torch.contiguous_format)
    found = []
    for backend in ("auto", "native", "reference"):
        a, b = x.clone().requires_grad_(), torch.ones(SHAPE, requires_grad=True)
        with evenly.use_backend(backend):
            found.append(torch.autograd.grad(layer(a, residual=b, **kwargs), [a, b], dy))
    a = x.double().requires_grad_()
    b = torch.ones(SHAPE, dtype=torch.float64, requires_grad=True)
    z = a / (1 + layer.eps) ** 0.5 + b
    y = getattr(F, activation)(z)
    counts = kwargs["mask"].unsqueeze(1)
    truth = torch.autograd.grad(torch.where(counts, y, 0) if zero_masked else y, [a, b], dy.double())

    for gradients in found:
        for one, other in zip(gradients, truth, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_a_short_layer_norm_under_hooks_that_lay_tensors_otherwise() -> None:
    """Transposed memory comes back for the input of a row norm that torch's operator would do; gradients stay."""
    layer, x = evenly.LayerNorm(5), torch.randn(3, 6, 5)
    found = []
    hooks: list[tuple[Any, Any]] = [
        (lambda t: t, lambda t: t),
        (lambda t: t.transpose(0, -1).contiguous(), lambda t: t.transpose(0, -1)),
    ]
    for pack, unpack in hooks:
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = layer(leaf)
        found.append(torch.autograd.grad(y.pow(3).sum(), leaf)[0])

    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_native_in_half_precision_without_weights(dtype: torch.dtype) -> None:
    """Every norm without weight and bias has its gradient, and a large constant comes to nothing."""
    functional = evenly.functional
    norms: dict[str, Callable[[Tensor], Any]] = {
        "batch": lambda x: functional.batch_norm(x, None, None, training=True),
        "group": lambda x: functional.group_norm(x, 2),
        "instance": lambda x: functional.instance_norm(x),
        "layer": lambda x: functional.layer_norm(x, (5,)),
        "rms": lambda x: functional.rms_norm(x, (5,)),
    }
    dy = torch.randn(SHAPE).to(dtype)
    for norm in norms.values():
        found = []
        for backend in ("native", "reference"):
            x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
            with evenly.use_backend(backend):
                found.append(torch.autograd.grad(norm(x), x, dy)[0])
        torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_saved_tensors_laid_otherwise_on_every_backend(name: str, backend: str) -> None:
    """Statistics, weights and input that come back in another layout are read as what they are."""
    layer, (x, _, dy) = LAYERS[name]("relu"), _call("plain", torch.contiguous_format)
    found = []
    for hooks in (contextlib.nullcontext, AROUND["saved tensors laid otherwise"]):
        leaf = x.clone().requires_grad_()
        with evenly.use_backend(backend), hooks():
            y = layer(leaf)
        found.append(torch.autograd.grad(y, [leaf, *layer.parameters()], dy))

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaps": lambda t: t.repeat_interleave(2)[::2],
    "reversed memory": lambda t: t.flip(0).as_strided((t.numel(),), (1,)).flip(0),
    "one number": lambda t: t[:1].expand(t.numel()),
    "lazily negated": lambda t: torch._neg_view(-t),
}


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("kind", VECTORS)
def test_weights_of_any_layout_on_every_backend(kind: str, backend: str) -> None:
    """Weight and bias with gaps, expanded or lazily negated, for every function of the family."""
    functional, (x, _, dy) = evenly.functional, _call("plain", torch.contiguous_format)
    norms: dict[str, tuple[int, Callable[..., Any]]] = {
        "batch": (6, lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True)),
        "group": (6, lambda x, w, b: functional.group_norm(x, 2, w, b)),
        "instance": (6, lambda x, w, b: functional.instance_norm(x, weight=w, bias=b)),
        "layer": (5, lambda x, w, b: functional.layer_norm(x, (5,), w, b, activation="relu")),
        "rms": (5, lambda x, w, b: functional.rms_norm(x, (5,), w, activation="relu")),
    }
    for length, norm in norms.values():
        found = []
        for chosen in (backend, "reference"):
            leaf = x.clone().requires_grad_()
            weight, bias = (VECTORS[kind](torch.linspace(a, 2, length)) for a in (0.5, -1.0))
            with evenly.use_backend(chosen):
                y = norm(leaf, weight, bias)
                found.append([y, *torch.autograd.grad(y, leaf, dy)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_mask_where_there_are_no_channels() -> None:
    """Nothing is normalised, and the output is as empty as the input, on every backend."""
    x, mask = torch.randn(2, 0, 3), torch.ones(2, 3, dtype=torch.bool)
    for backend in ("auto", "native", "reference"):
        with evenly.use_backend(backend):
            y = evenly.functional.batch_norm(x, None, None, training=True, mask=mask)
            assert isinstance(y, Tensor) and y.shape == x.shape
