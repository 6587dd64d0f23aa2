"""The proof of one fold: the calls it touches, run before and after on the same input."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from evenly.tools.fold import calls
from evenly.tools.fold.layers import Layer
from evenly.tools.fold.norms import Refused
from evenly.tools.fold.work import Work, copied

FORMULA = 1e-10
"""What float64 may differ by, of the sum of the absolute products."""


class Errors(NamedTuple):
    """Largest differences of the folded layers, in their own type, from the unfolded in float64; and the bound."""

    example: float
    random: float
    bound: float


class Trial:
    """The touched calls between their inputs and outputs.

    Args:
        work: the graph.
        region: the calls that the fold touches.
        outputs: the calls to compare.
        rounded: the type in which the folded layers run.
    """

    def __init__(self, work: Work, region: set[fx.Node], outputs: list[fx.Node], rounded: torch.dtype) -> None:
        self.work, self.region, self.outputs, self.rounded = work, region, outputs, rounded
        self.inputs: list[dict[fx.Node, Any]] = [{}, {}]
        self.memos: dict[str, dict[fx.Node, Any]] = {}
        self.now: dict[fx.Node, Any] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.before = [self._run(place, outputs, "exact") for place in (0, 1)]

    def errors(self, outputs: list[fx.Node], terms: int) -> Errors:
        """Compare what ``outputs`` give now with what was there before.

        Raises:
            Refused: they differ by more than rounding explains.
        """
        found, bound = [], 0.0
        for place, before in enumerate(self.before):
            exact, low, size = (self._run(place, outputs, mode) for mode in ("exact", "rounded", "absolute"))
            self._remember(place)
            error = 0.0
            for was, now, rounded, scale in zip(before, exact, low, size, strict=True):
                if not was.numel():
                    continue
                if not (rounded.isfinite() | ~was.isfinite()).all():
                    raise Refused(f"the folded layer overflows {str(self.rounded).removeprefix('torch.')}")
                largest = float(scale.nan_to_num(0, 0, 0).max())
                if was.shape != now.shape or not float((was - now).abs().nan_to_num(0, 0, 0).max()) <= FORMULA * max(
                    largest, 1e-300
                ):
                    raise Refused("measured: the folded layers compute something else in float64")
                error = max(error, float((rounded.double() - was).abs().nan_to_num(0, 0, 0).max()))
                bound = max(bound, self._bound(largest, terms))
            found.append(error)
        if max(found) > bound:
            raise Refused(f"measured: an error of {max(found):.1e} is above the bound of {bound:.1e}")
        return Errors(found[0], found[1], bound)

    def _bound(self, largest: float, terms: int) -> float:
        """The classical bound, ``n u`` times the sum of absolute products, n counting products and roundings."""
        steps = terms + 4 + 2 * len(self.region)
        unit = torch.finfo(self.rounded).eps / 2
        if unit > 1e-5:  # half types are accumulated in float32 and rounded at each call
            return largest * (unit * (4 + 2 * len(self.region)) + steps * torch.finfo(torch.float32).eps / 2)
        return 2 * largest * steps * unit

    def _remember(self, place: int) -> None:
        """What the touched calls give from now on, for the trials of other folds."""
        if place == 0:
            self.now = {n: v for n, v in self.memos["rounded"].items() if n in self.region}

    def _run(self, place: int, outputs: list[fx.Node], mode: str) -> list[Tensor]:
        memo = self.memos[mode] = {}
        with torch.no_grad():
            return [self._value(self.work.source(node), memo, place, mode) for node in outputs]

    def _value(self, node: fx.Node, memo: dict[fx.Node, Any], place: int, mode: str) -> Any:
        node = self.work.source(node)
        if node not in memo:
            memo[node] = self._compute(node, memo, place, mode)
        return memo[node]

    def _compute(self, node: fx.Node, memo: dict[fx.Node, Any], place: int, mode: str) -> Any:
        if node not in self.region:
            return self._input(node, place, mode)
        work = self.work

        def value(n: fx.Node) -> Any:
            return self._value(n, memo, place, mode)

        if node in work.layers:
            return self._layer(work.layers[node], value(node.args[0]), mode)  # type: ignore[arg-type]
        if node in work.norms:
            norm, x = work.norms[node], value(node.args[0])  # type: ignore[arg-type]
            shape = [1] * x.ndim
            shape[norm.channel] = -1
            scale, shift = norm.scale.reshape(shape), norm.shift.reshape(shape)
            if mode == "absolute":
                scale, shift = scale.abs(), shift.abs()
            return x * scale.to(x.dtype) + shift.to(x.dtype)
        if node in work.edges:
            x = value(node.args[0])  # type: ignore[arg-type]
            edge = work.edges[node].abs() if mode == "absolute" else work.edges[node]
            return padded(x, edge.to(x.dtype), pad_pairs(work, node), 1)
        if calls.kind_of(node, work.root) == "same":
            return value(node.args[0])  # type: ignore[arg-type]
        args: Any
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value)
        if calls.writes(node, work.root) is not None and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])
        if node.op == "call_module":
            module = copied(work.root.get_submodule(str(node.target)), args[0].dtype)
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _layer(self, layer: Layer, x: Tensor, mode: str) -> Tensor:
        dtype = self.rounded if mode == "rounded" else torch.float64
        edges = layer.edges
        if edges is not None:
            edges = edges.abs() if mode == "absolute" else edges
            x = padded(x, edges.to(x.dtype), layer.pads(), x.ndim - 1 - layer.rank)
        made: Tensor = layer.built(dtype, absolute=mode == "absolute")(x)
        return made

    def _input(self, node: fx.Node, place: int, mode: str) -> Any:
        inputs = self.inputs[place]
        if node not in inputs:
            inputs[node] = self._begin(self.work.values[node], place)
        value = inputs[node]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if mode == "rounded":
            return value.to(self.rounded)
        return value.abs() if mode == "absolute" else value

    def _begin(self, value: Any, place: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().cpu()
        if not value.is_floating_point():
            return value
        if place == 1:
            value = torch.randn(value.shape, generator=self.generator, dtype=torch.float64)
        return value.to(self.rounded).double()


def padded(x: Tensor, edge: Tensor, pads: list[tuple[int, int]], channel: int) -> Tensor:
    """Each channel padded with its own value along the last axes."""
    flat = [p for pair in reversed(pads) for p in pair]
    inside = F.pad(torch.ones_like(x[:1] if channel else x), flat).bool()
    shape = [1] * x.ndim
    shape[channel] = -1
    return torch.where(inside, F.pad(x, flat), edge.reshape(shape))


def pad_pairs(work: Work, node: fx.Node) -> list[tuple[int, int]]:
    """A padding call's elements before and after, per axis from the first that it names."""
    given = calls.settings(node, work.root)
    flat = given.get("pad", given.get("padding"))
    assert flat is not None
    values = [int(work.values[v] if isinstance(v, fx.Node) else operator.index(v)) for v in flat]
    return [(values[k], values[k + 1]) for k in range(len(values) - 2, -1, -2)]
