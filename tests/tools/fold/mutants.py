"""Ten wrong formulas, each planted for the length of a block, to see whether the soak can find them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evenly.tools.fold import norms, push, rules, steps
from evenly.tools.fold.layers import Layer


def _without_eps(mean: Tensor, var: Tensor, eps: Any, weight: Any, bias: Any) -> tuple[Tensor, Tensor]:
    return _right(mean, var, 0.0, weight, bias)


def _without_mean(mean: Tensor, var: Tensor, eps: Any, weight: Any, bias: Any) -> tuple[Tensor, Tensor]:
    return _right(torch.zeros_like(mean), var, eps, weight, bias)


def _without_root(mean: Tensor, var: Tensor, eps: Any, weight: Any, bias: Any) -> tuple[Tensor, Tensor]:
    scale, shift = _right(mean, var, eps, weight, bias)
    return scale * (var.double() + float(eps)).rsqrt(), shift


_right = norms.scale_and_shift
_outputs, _inputs, _edge = Layer.scale_outputs, Layer.scale_inputs, steps.edge_of


def _bias_unscaled(self: Layer, scale: Tensor, shift: Tensor) -> None:
    bias = self.bias
    _outputs(self, scale, shift)
    self.bias = shift if bias is None else bias + shift


def _groups_forgotten(self: Layer, scale: Tensor, shift: Tensor) -> None:
    if not self.transposed:
        return _outputs(self, scale, shift)
    per_group = self.weight.shape[1]
    self.weight = self.weight * scale[:per_group].reshape(1, -1, *[1] * self.rank)
    self.bias = shift if self.bias is None else self.bias * scale + shift
    self.changed = True
    return None


def _shift_dropped(self: Layer, scale: Tensor, shift: Tensor) -> None:
    _inputs(self, scale, torch.zeros_like(shift))


def _border_zero(old: Tensor, scale: Tensor, shift: Tensor, name: str) -> Tensor:
    return torch.zeros_like(old)


def _border_sign(old: Tensor, scale: Tensor, shift: Tensor, name: str) -> Tensor:
    return -_edge(old, scale, shift, name)


def _relu_always(self: push.Push, node: Any, a: Tensor, b: Tensor, path: Any) -> None:
    self.backward(node.args[0], a, b, node, path)


def _greatest_always(self: push.Push, node: Any, a: Tensor, b: Tensor, path: Any) -> None:
    self._back_means(node, a, b, path)


def _corner(layer: Layer) -> Any:
    right = rules_places(layer)
    return (*right[:2], *[0] * layer.rank) if layer.rank else right


rules_places = rules._identity_places
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "eps left out": (norms, "scale_and_shift", _without_eps),
    "mean left out": (norms, "scale_and_shift", _without_mean),
    "variance for its root": (norms, "scale_and_shift", _without_root),
    "old bias not scaled": (Layer, "scale_outputs", _bias_unscaled),
    "groups forgotten": (Layer, "scale_outputs", _groups_forgotten),
    "shift dropped before a layer": (Layer, "scale_inputs", _shift_dropped),
    "border of zeros": (steps, "edge_of", _border_zero),
    "border of the wrong sign": (steps, "edge_of", _border_sign),
    "ReLU lets a shift pass": (push.Push, "_back_scales", _relu_always),
    "maximum lets a negative scale pass": (push.Push, "_back_greatest", _greatest_always),
    "identity in the kernel's corner": (rules, "_identity_places", _corner),
}
WHERE: dict[str, tuple[str, ...]] = {
    "eps left out": ("conv_norm", "linear_before"), "mean left out": ("conv_norm",),
    "variance for its root": ("conv_norm",),
    "old bias not scaled": ("conv_norm",), "groups forgotten": ("transposed",),
    "shift dropped before a layer": ("before", "before_padded"), "border of zeros": ("before_padded",),
    "border of the wrong sign": ("before_padded", "before_padding"), "ReLU lets a shift pass": ("relu_shift",),
    "maximum lets a negative scale pass": ("greatest",), "identity in the kernel's corner": ("repvgg",),
}  # fmt: skip


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Put a wrong formula in the right one's place."""
    home, attribute, wrong = MUTANTS[name]
    right = vars(home)[attribute]
    setattr(home, attribute, wrong)
    try:
        yield
    finally:
        setattr(home, attribute, right)


__all__ = ["MUTANTS", "WHERE", "planted"]
