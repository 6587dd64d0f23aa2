"""Who is measured, each at its best: evenly, its kernels alone, torch eager and compiled; `others` has the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenly
from evenly import backends
from evenly.backends.kernel import Kernel
from evenly.backends.records import Gradients, Kept, Tensors, Wanted
from evenly.bench.judge import EPS, Affine, Inputs, Outcome, make_affine
from evenly.bench.shapes import Case
from evenly.bench.timing import Trial
from evenly.core.activation import Activation
from evenly.core.norm import Norm
from evenly.core.partition import Partition
from evenly.nn.layout import layout

Layer = Callable[[Tensor, Tensor | None], Tensor]


class Unavailable(Exception):  # noqa: N818  # not an error: a reason that the table gives
    """Why a peer cannot run a case here."""


class Peer(Trial, Protocol):
    """A peer made ready for one case: it can be judged and timed."""

    def outcome(self, inputs: Inputs) -> Outcome:
        """Output and gradients, to be judged."""


class TorchPeer:
    """Anything that computes with torch's autograd.

    Args:
        case: what it computes.
        layer: from input and residual to output.
        parameters: weight and bias, whose gradients are asked for.
    """

    def __init__(self, case: Case, layer: Layer, parameters: Sequence[Tensor]) -> None:
        self.case, self._layer, self._parameters = case, layer, list(parameters)

    def load(self, inputs: Sequence[Inputs]) -> None:
        """See `evenly.bench.timing.Trial`."""
        self._inputs = [_leaves(one) for one in inputs]

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """See `evenly.bench.timing.Trial`; outputs are allocated and freed by each step, as in use."""
        forward = backward = 0.0
        wanted = [self._wanted(inputs) for inputs in self._inputs]
        for step in range(first, first + number):
            which = step % len(self._inputs)
            x, residual, dy = self._inputs[which]
            start = perf_counter()
            y = self._layer(x, residual)
            middle = perf_counter()
            torch.autograd.grad(y, wanted[which], dy)
            del y
            end = perf_counter()
            forward += middle - start
            backward += end - middle
        return forward, backward

    def outcome(self, inputs: Inputs) -> Outcome:
        """See `Peer`."""
        inputs = _leaves(inputs)
        y = self._layer(inputs.x, inputs.residual)
        dx, dweight, *rest = torch.autograd.grad(y, self._wanted(inputs), inputs.dy)
        dresidual = rest.pop() if inputs.residual is not None else None
        return Outcome(y.detach(), dx, dweight, rest[0] if rest else None, dresidual)

    def _wanted(self, inputs: Inputs) -> list[Tensor]:
        return [inputs.x, *self._parameters, *([] if inputs.residual is None else [inputs.residual])]


def ours(case: Case) -> Peer:
    """evenly's layer, with activation and residual fused."""
    options: dict[str, Any] = {"activation": case.activation}
    layer: nn.Module
    match case.norm:
        case "batch":
            layer = evenly.BatchNorm(case.channels, EPS, **options)
        case "instance":
            classes = {3: evenly.InstanceNorm1d, 4: evenly.InstanceNorm2d, 5: evenly.InstanceNorm3d}
            layer = classes[len(case.shape)](case.channels, EPS, affine=True, **options)
        case "group":
            layer = evenly.GroupNorm(case.groups, case.channels, EPS, **options)
        case "layer":
            layer = evenly.LayerNorm(case.channels, EPS, **options)
        case "rms":
            layer = evenly.RMSNorm(case.channels, EPS, **options)
    parameters = _set_affine(layer, make_affine(case))
    if not case.residual:
        return TorchPeer(case, lambda x, residual: layer(x), parameters)
    return TorchPeer(case, lambda x, residual: layer(x, residual=residual), parameters)


class KernelPeer:
    """evenly's kernels alone, without layer and autograd: the rest of evenly's time is the call's own.

    Args:
        case: what they compute.
    """

    def __init__(self, case: Case) -> None:
        cpu = backends.import_cpu()
        if case.norm != "batch":
            raise Unavailable("measured for batch norm only")
        if cpu is None:
            raise Unavailable("the kernels are not built")
        self._cpu, self._residual = cpu, case.residual
        self._weight, self._bias = make_affine(case)
        self._activation = Activation.of(case.activation)

    def load(self, inputs: Sequence[Inputs]) -> None:
        """See `evenly.bench.timing.Trial`."""
        self._inputs = list(inputs)
        x = self._inputs[0].x
        lies = layout(x, 1)
        norm = Norm(Partition.of_batch(lies.shape, lies.channel), EPS, self._activation)
        self._kernel: Kernel = self._cpu.prepare(norm, x, lies.order)

    def steps(self, first: int, number: int) -> tuple[float, float]:
        """See `evenly.bench.timing.Trial`."""
        forward = backward = 0.0
        for step in range(first, first + number):
            inputs = self._inputs[step % len(self._inputs)]
            start = perf_counter()
            there = self._there(inputs)
            middle = perf_counter()
            self._back(inputs, there[1])
            del there
            end = perf_counter()
            forward += middle - start
            backward += end - middle
        return forward, backward

    def outcome(self, inputs: Inputs) -> Outcome:
        """See `Peer`."""
        self.load([inputs])
        y, kept = self._there(self._inputs[0])
        dx, dweight, dbias, dresidual = self._back(self._inputs[0], kept)
        assert dx is not None and dweight is not None and dbias is not None
        return Outcome(y, dx, dweight, dbias, dresidual)

    def _there(self, inputs: Inputs) -> tuple[Tensor, Kept]:
        tensors = Tensors(self._weight, self._bias, inputs.residual)
        return self._kernel.forward(inputs.x, tensors, None, keep=True)

    def _back(self, inputs: Inputs, kept: Kept) -> Gradients:
        tensors = Tensors(self._weight, self._bias)
        return self._kernel.backward(inputs.dy, inputs.x, tensors, kept, Wanted(dresidual=self._residual))


def eager(case: Case) -> Peer:
    """torch.nn's layer, then the residual and the activation in place."""
    layer = torch_layer(case)
    parameters = _set_affine(layer, make_affine(case))
    return TorchPeer(case, _unfused(layer, case.activation), parameters)


def compiled(case: Case) -> Peer:
    """The same by torch.compile, which fuses what it can."""
    layer = torch_layer(case)
    parameters = _set_affine(layer, make_affine(case))
    torch.compiler.reset()
    return TorchPeer(case, torch.compile(_unfused(layer, case.activation), dynamic=False), parameters)


def torch_layer(case: Case) -> nn.Module:
    """The layer of torch.nn for a case."""
    match case.norm:
        case "batch":
            return {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(case.shape)](
                case.channels, EPS
            )
        case "instance":
            return {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}[len(case.shape)](
                case.channels, EPS, affine=True
            )
        case "group":
            return nn.GroupNorm(case.groups, case.channels, EPS)
        case "layer":
            return nn.LayerNorm(case.channels, EPS)
        case "rms":
            return nn.RMSNorm(case.channels, EPS)


def _unfused(layer: nn.Module, activation: str | None) -> Layer:
    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layer(x)
        if residual is not None:
            y += residual
        return in_place(y, activation)

    return run


def in_place(y: Tensor, activation: str | None) -> Tensor:
    """The activation, in place where its derivative can be had from its output."""
    match activation:
        case None:
            return y
        case "relu":
            return F.relu(y, inplace=True)
        case "relu6":
            return F.relu6(y, inplace=True)
        case "leaky_relu":
            return F.leaky_relu(y, inplace=True)
        case "elu":
            return F.elu(y, inplace=True)
        case "silu":
            return F.silu(y)
    return F.gelu(y)


def _set_affine(layer: nn.Module, affine: Affine) -> list[Tensor]:
    """Give a layer its weight and bias; those of a half-precision input stay float32."""
    with torch.no_grad():
        for name, value in affine._asdict().items():
            if value is not None:
                getattr(layer, name).copy_(value)
    return list(layer.parameters())


def _leaves(inputs: Inputs) -> Inputs:
    x, residual, dy = inputs
    return Inputs(x.requires_grad_(), None if residual is None else residual.requires_grad_(), dy)
