"""Batch norms as a state_dict has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenly.tools.finding import LayerView


@dataclass(frozen=True)
class Layer:
    """One batch norm as the state_dict has it.

    Args:
        name: of the module.
        mean: running mean, shape ``(channels,)``, as stored.
        var: running variance.
        weight: or None.
        batches: ``num_batches_tracked`` for each call in a forward, or None.
        eps: the layer's, or torch's default.
        momentum: the layer's, or torch's default; None is the cumulative average.
        bias_before: key of the bias of the convolution or linear layer before it, or None.
    """

    name: str
    mean: Tensor
    var: Tensor
    weight: Tensor | None
    batches: float | None
    eps: float
    momentum: float | None
    bias_before: str | None

    @property
    def untouched(self) -> bool:
        """Whether the statistics are those a new layer has."""
        return not self.mean.any() and bool((self.var == 1).all())

    @property
    def usable(self) -> bool:
        """Whether both statistics are finite and the variance not negative."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.var).all() and (self.var >= 0).all())


def layers_of(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None, calls: Mapping[str, int] | None = None
) -> list[Layer]:
    """The batch norms in a state_dict: whatever has a running mean and variance.

    Args:
        tensors: the state_dict.
        settings: ``eps`` and ``momentum`` by layer, where they are known.
        calls: how often a layer is called in one forward, where that is known.
    """
    found = []
    for key in tensors:
        name = key.removesuffix("running_mean")
        mean, var = _numbers(tensors.get(key)), _numbers(tensors.get(f"{name}running_var"))
        if name == key or mean is None or var is None or mean.shape != var.shape:
            continue
        known = (settings or {}).get(name[:-1], {})
        counter, weight = tensors.get(f"{name}num_batches_tracked"), _numbers(tensors.get(f"{name}weight"))
        found.append(
            Layer(
                name[:-1],
                mean,
                var,
                None if weight is None or weight.shape != mean.shape else weight.float(),
                None if counter is None or not _counts(counter) else counter.item() / (calls or {}).get(name[:-1], 1),
                known.get("eps", 1e-5),
                known.get("momentum", 0.1),
                _bias_before(name[:-1], len(mean), tensors),
            )
        )
    return found


def _numbers(tensor: Tensor | None) -> Tensor | None:
    """One finite-precision number for each channel, on the CPU; None for anything else of that name."""
    if tensor is None or tensor.ndim != 1 or not tensor.is_floating_point():
        return None
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()  # torch computes little in eight bits


def _counts(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and not tensor.is_complex()


def _bias_before(name: str, channels: int, tensors: Mapping[str, Tensor]) -> str | None:
    """The bias of the layer before a norm, by the names that people give: conv1 and bn1, 3 and 4."""
    head, _, last = name.rpartition(".")
    guesses = {last.replace(norm, layer) for norm in ("bn", "norm") for layer in ("conv", "fc", "linear", "lin")}
    if last.isdigit():
        guesses = {str(int(last) - 1)}
    for guess in sorted(guesses - {last}):
        before = f"{head}.{guess}" if head else guess
        weight, bias = tensors.get(f"{before}.weight"), tensors.get(f"{before}.bias")
        if weight is not None and bias is not None and weight.ndim > 1 and bias.shape == (channels,):
            return f"{before}.bias"
    return None


def view(layer: Layer, distance: float | None = None) -> LayerView:
    """A layer for the picture."""
    std = layer.var.double().clamp(min=0).sqrt()
    return LayerView(layer.name, distance, _range(layer.mean.double()), _range(std))


def _range(values: Tensor) -> tuple[float, float, float]:
    values = values[torch.isfinite(values)]
    if not len(values):
        return (0.0, 0.0, 0.0)
    return (values.min().item(), values.median().item(), values.max().item())
