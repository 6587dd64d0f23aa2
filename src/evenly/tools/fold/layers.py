"""Convolutions and linear layers at a call site, in float64: absorb a scale and a shift, and be built again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from evenly.tools.fold.norms import Refused

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


@dataclass
class Layer:
    """One call of a convolution or linear layer.

    Args:
        like: the torch.nn layer whose geometry it has.
        weight, bias: in float64, on the CPU.
        dtype, device: what the weights are rounded to, once, and where they lie.
        padding: its zero padding.
        edges: what each input channel is padded with instead of zeros, in float64.
        changed: whether anything was folded into it.
    """

    like: Any
    cls: type[nn.Module]
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    device: torch.device
    padding: Any = None
    edges: Tensor | None = None
    changed: bool = False

    @classmethod
    def of(cls, module: Any) -> Layer | None:
        """The record of a torch.nn layer; None where it is none of `KINDS`."""
        parametrized = nn.utils.parametrize.is_parametrized(module)
        kind = type(module).__mro__[1] if parametrized else type(module)
        if kind not in KINDS or module._forward_hooks or not all(map(_renews, module._forward_pre_hooks.values())):
            return None
        weight, bias = module.weight.detach(), module.bias
        if not weight.is_floating_point():
            return None
        wide = None if bias is None else bias.detach().cpu().double()
        padding = getattr(module, "padding", None)
        return cls(module, kind, weight.cpu().double(), wide, weight.dtype, weight.device, padding)

    @property
    def rank(self) -> int:
        """The number of axes along which it slides."""
        return self.weight.ndim - 2

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return issubclass(self.cls, _ConvTransposeNd)

    @property
    def groups(self) -> int:
        """Its groups; 1 for a linear layer."""
        return int(getattr(self.like, "groups", 1))

    @property
    def terms(self) -> int:
        """How many products enter one output element."""
        return max(1, self.weight.numel() // max(1, self.outputs))

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    def axis(self, ndim: int) -> int:
        """The channel axis of its input and output, which have ``ndim`` axes."""
        return ndim - 1 if self.cls is nn.Linear else ndim - 1 - self.rank

    def pads(self) -> list[tuple[int, int]]:
        """Zeros before and after, per axis along which it slides."""
        if self.cls is nn.Linear:
            return []
        if self.padding == "valid":
            return [(0, 0)] * self.rank
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.like.dilation, self.weight.shape[2:], strict=True)]
            return [(t // 2, t - t // 2) for t in total]
        return [(int(p), int(p)) for p in self.padding]

    def scale_outputs(self, scale: Tensor, shift: Tensor) -> None:
        """Take ``scale * y + shift`` of its output in."""
        if self.transposed:
            shape = (self.groups, -1, *self.weight.shape[1:])
            by = scale.reshape(self.groups, 1, -1, *[1] * self.rank)
            self.weight = (self.weight.reshape(shape) * by).reshape(self.weight.shape)
        else:
            self.weight = self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        self.bias = shift if self.bias is None else self.bias * scale + shift
        self.changed = True

    def scale_inputs(self, scale: Tensor, shift: Tensor) -> None:
        """Take ``scale * x + shift`` of its input in; the border must be seen to by the caller."""
        if self.transposed:
            added = None
            self.weight = self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        else:
            per_group = self.weight.shape[1]
            shape = (self.groups, -1, per_group, *self.weight.shape[2:])
            grouped = self.weight.reshape(shape)
            extra = [1] * max(0, self.rank)
            added = (grouped * shift.reshape(self.groups, 1, per_group, *extra)).flatten(2).sum(2).flatten()
            self.weight = (grouped * scale.reshape(self.groups, 1, per_group, *extra)).reshape(self.weight.shape)
        if added is not None:
            self.bias = added if self.bias is None else self.bias + added
        self.changed = True

    def built(self, dtype: torch.dtype, *, absolute: bool = False) -> nn.Module:
        """The torch.nn layer of these weights, in ``dtype``; of their absolute values for an error bound."""
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if absolute:
            weight, bias = weight.abs(), None if bias is None else bias.abs()
        made: Any = _empty(self, bias is not None)
        made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        made.training = False
        return made  # type: ignore[no-any-return]

    def final(self) -> nn.Module:
        """The layer as it is deployed: rounded once, where the original lies.

        Raises:
            Refused: a weight overflows its type.
        """
        made = self.built(self.dtype)
        for tensor in made.parameters():
            if not tensor.isfinite().all():
                raise Refused(f"the folded weights overflow {str(self.dtype).removeprefix('torch.')}")
        return made.to(self.device).requires_grad_(True)


def _renews(hook: Any) -> bool:
    """Whether a hook is torch's own that computes the weight anew."""
    return type(hook).__module__.startswith("torch.nn.utils.") and type(hook).__name__ in ("WeightNorm", "SpectralNorm")


def _empty(layer: Layer, bias: bool) -> nn.Module:
    like = layer.like
    if layer.cls is nn.Linear:
        return nn.Linear(layer.inputs, layer.outputs, bias=bias, device="meta")
    options: dict[str, Any] = {name: getattr(like, name) for name in ("stride", "dilation", "padding_mode")}
    if layer.transposed:
        options["output_padding"] = like.output_padding
    padding = 0 if layer.edges is not None else layer.padding
    return layer.cls(
        layer.inputs, layer.outputs, tuple(layer.weight.shape[2:]), padding=padding, groups=layer.groups,
        bias=bias, device="meta", **options,
    )  # fmt: skip
