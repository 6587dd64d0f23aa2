"""No time without a right result: every peer is compared with float64 before it is timed."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from evenly import functional
from evenly.backends import use_backend
from evenly.bench.shapes import Case
from evenly.core.activation import ActivationName

EPS = 1e-5
# Largest error allowed, as a share of the largest value. Sums over 400,000 numbers of float32 lose
# about 1e-5; half precision rounds each output to 8 or 11 bits.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
_CHECKED = 1 << 22  # elements that are compared; of larger tensors some channels (or samples)


class Inputs(NamedTuple):
    """What one call is given; ``dy`` is the gradient that comes back to its output."""

    x: Tensor
    residual: Tensor | None
    dy: Tensor


class Outcome(NamedTuple):
    """What one call gives, forward and backward; None where there is nothing."""

    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor | None
    dresidual: Tensor | None


class Affine(NamedTuple):
    """Weight and bias, shape ``(channels,)``, float32."""

    weight: Tensor
    bias: Tensor | None


def make_inputs(case: Case, seed: int, mean: float = 0.0) -> Inputs:
    """The same numbers for the same seed, in every process."""
    generator = torch.Generator().manual_seed(seed)
    x = case.tensor(generator, mean)
    residual = case.tensor(generator) if case.residual else None
    return Inputs(x, residual, case.tensor(generator))


def make_rotation(case: Case, number: int) -> list[Inputs]:
    """``number`` inputs in memory of their own; numbers take long to draw, so all hold those of seed 0."""
    first = make_inputs(case, 0)
    return [first, *(Inputs(*(t if t is None else t.clone() for t in first)) for _ in range(number - 1))]  # type: ignore[arg-type]


def make_affine(case: Case) -> Affine:
    """A weight around 1 and a bias around 0, the same in every process."""
    generator = torch.Generator().manual_seed(case.channels)
    weight = torch.empty(case.channels).normal_(1.0, 0.2, generator=generator)
    bias = torch.empty(case.channels).normal_(0.0, 0.5, generator=generator)
    return Affine(weight, None if case.norm == "rms" else bias)


class Judge:
    """Knows the right result of one case, on one input.

    Of a large tensor some channels (of a batch norm) or samples (of the others) are compared, the
    first and the last among them; elsewhere ``dy`` is 0. It is 0, too, where the activation has a
    kink within rounding: there both slopes are right.

    Args:
        case: what is computed.
        mean: of the input; its standard deviation is 1.
    """

    def __init__(self, case: Case, mean: float = 0.0) -> None:
        self.case = case
        self.affine = make_affine(case)
        inputs = make_inputs(case, seed=1, mean=mean)
        self._axis = 1 if case.norm == "batch" else 0
        size = case.shape[self._axis]
        take = max(2, min(size, _CHECKED * size // max(inputs.x.numel(), 1)))
        self._at = torch.linspace(0, size - 1, take).round().long().unique()
        z = self._forward(self._part(inputs.x), self._part(inputs.residual), self._part_affine(), None)
        dy = torch.zeros_like(inputs.dy)
        margin = 1e-2 if mean else {"bfloat16": 5e-2, "float16": 1e-2}.get(case.dtype, 1e-4)
        part = torch.where(_near_kink(z, case.activation, margin), 0, self._part(inputs.dy))
        dy.index_copy_(self._axis, self._at, part.to(dy.dtype))
        self.inputs = inputs._replace(dy=dy)

    def error(self, outcome: Outcome) -> float:
        """The largest error of output and gradients, each as a share of its largest value; NaN is infinite."""
        expected = self._expected()
        worst = 0.0
        for name, right in expected._asdict().items():
            given = getattr(outcome, name)
            if right is None:
                continue
            if given is None or not bool(torch.isfinite(given).all()):
                return float("inf")
            per_channel = name in ("dweight", "dbias")
            part = self._part_channels(given) if per_channel else self._part(given)
            error = (part.double() - right).abs().max() / right.abs().max().clamp(min=1e-30)
            worst = max(worst, float(error))
        return worst

    def refusal(self, error: float) -> str | None:
        """Why a time must not be given, or None."""
        tolerance = TOLERANCE[self.case.dtype]
        if error <= tolerance:
            return None
        return f"wrong result: differs from float64 by {error:.1e} of the largest value ({tolerance:.0e} is allowed)"

    def _expected(self) -> Outcome:
        x, residual, dy = (
            None if t is None else self._part(t).double().requires_grad_(grad)
            for t, grad in zip(self.inputs, (True, True, False), strict=True)
        )
        weight, bias = (None if t is None else t.double().requires_grad_() for t in self._part_affine())
        assert x is not None
        y = self._forward(x, residual, (weight, bias), self.case.activation)
        wanted = [t for t in (x, weight, bias, residual) if t is not None]
        gradients = iter(torch.autograd.grad(y, wanted, dy))
        found = [None if t is None else next(gradients) for t in (x, weight, bias, residual)]
        return Outcome(y.detach(), *found)  # type: ignore[arg-type]

    def _forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        affine: tuple[Tensor | None, Tensor | None],
        activation: ActivationName | None,
    ) -> Tensor:
        x = x.double()
        residual = None if residual is None else residual.double()
        weight, bias = (None if t is None else t.double() for t in affine)
        with use_backend("reference"):
            match self.case.norm:
                case "batch":
                    y = functional.batch_norm(
                        x, None, None, weight, bias, True, 0.1, EPS, activation=activation, residual=residual
                    )
                    return cast(Tensor, y)  # a tuple only with return_stats
                case "instance":
                    return functional.instance_norm(
                        x, None, None, weight, bias, True, 0.1, EPS, activation=activation, residual=residual
                    )
                case "group":
                    return functional.group_norm(
                        x, self.case.groups, weight, bias, EPS, activation=activation, residual=residual
                    )
                case "layer":
                    return functional.layer_norm(
                        x, x.shape[1:], weight, bias, EPS, activation=activation, residual=residual
                    )
                case "rms":
                    return functional.rms_norm(x, x.shape[1:], weight, EPS, activation=activation, residual=residual)

    def _part(self, t: Tensor | None) -> Tensor:
        return t if t is None else t.detach().index_select(self._axis, self._at)  # type: ignore[return-value]

    def _part_channels(self, t: Tensor) -> Tensor:
        return t.detach()[self._at] if self._axis == 1 else t.detach()

    def _part_affine(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = (None if t is None else self._part_channels(t) for t in self.affine)
        return weight, bias


def _near_kink(z: Tensor, activation: str | None, margin: float) -> Tensor:
    kinks = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0)}.get(activation or "", ())
    near = torch.zeros_like(z, dtype=torch.bool)
    for kink in kinks:
        near |= (z - kink).abs() < margin
    return near
