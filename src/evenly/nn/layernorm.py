"""Layer and RMS normalization as layers."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn

from evenly.backends.records import Tensors
from evenly.core.activation import Activation, ActivationName
from evenly.nn.layer import Fused, leaf, state_of, traced
from evenly.nn.rows import rows
from evenly.nn.settings import Settings, settings_of

Device = torch.device | str | None
Shape = int | list[int] | tuple[int, ...] | torch.Size


class LayerNorm(Fused, nn.LayerNorm):
    """Layer normalization: one mean and variance per row of the last axes.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    Args:
        normalized_shape: the last axes, shape of weight and bias.
        eps: added to the variance.
        elementwise_affine: whether there are weight and bias.
        bias: whether there is a bias (with ``elementwise_affine``).
        device: of the parameters.
        dtype: of the parameters.
        scale: whether there is a weight (with ``elementwise_affine``).
        channel: an axis to normalise alone, ``normalized_shape`` being its size: 1 for the
            channels of ``(N, C, H, W)``, without a permute. None: the last axes.
        activation, activation_args, weight_init, bias_init: as in `evenly.BatchNorm`.

    Source:
        Ba, Kiros and Hinton, 2016, https://arxiv.org/abs/1607.06450

    Example:
        >>> import torch, evenly
        >>> evenly.LayerNorm(8, activation="gelu")(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    channel: int | None = None

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        scale: bool = True,
        activation: ActivationName | None = None,
        activation_args: tuple[float, ...] = (),
        channel: int | None = None,
        weight_init: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._set_activation(activation, activation_args)
        self._set_affine(scale=scale, bias=bias, weight_init=weight_init, bias_init=bias_init)
        self.channel = channel

    def forward(self, input: Tensor, residual: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """The normalised input; ``residual`` is added before the layer's activation, or this call's."""
        if type(input) is not Tensor and traced(input):
            return leaf(self, input, residual=residual, activation=activation)
        weight, bias = state_of(self, "weight", "bias")
        tensors = Tensors(weight, bias, residual)
        return rows(input, tensors, self._settings(activation))

    _asked = attrgetter("eps", "activation", "activation_args", "channel", "normalized_shape")

    def _make_settings(self) -> Settings:
        shape = self.normalized_shape
        return settings_of(
            "layer", self.eps, self.activation, self.activation_args, channel=self.channel, shape=shape
        )  # fmt: skip

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(super().extra_repr(), "channel")


class RMSNorm(Fused, nn.RMSNorm):
    """RMS normalization: rows divided by their root mean square.

    ``y = activation(weight * x / sqrt(mean(x**2) + eps) + residual)``

    Args:
        normalized_shape: the last axes, shape of weight.
        eps: added to the mean square; None: machine epsilon of the type computed in.
        elementwise_affine: whether there is a weight.
        device: of the parameters.
        dtype: of the parameters.
        zero_centered: whether the layer scales by ``1 + weight``, the weight starting from 0, so
            that weight decay pulls the scale to 1.
        channel: as in `LayerNorm`.
        activation, activation_args, weight_init: as in `evenly.BatchNorm`; ``weight_init`` is what
            the layer scales by at first, also where that is ``1 + weight``.

    Source:
        Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467

    Example:
        >>> import torch, evenly
        >>> evenly.RMSNorm(8)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    bias: None = None
    zero_centered: bool = False
    channel: int | None = None

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationName | None = None,
        activation_args: tuple[float, ...] = (),
        zero_centered: bool = False,
        channel: int | None = None,
        weight_init: float = 1.0,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._set_activation(activation, activation_args)
        self.weight_init, self.zero_centered, self.channel = weight_init, zero_centered, channel
        self._start_affine()

    def forward(self, input: Tensor, residual: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """The normalised input; ``residual`` is added before the layer's activation, or this call's."""
        if type(input) is not Tensor and traced(input):
            return leaf(self, input, residual=residual, activation=activation)
        (weight,) = state_of(self, "weight")
        if self.zero_centered and weight is not None:
            weight = weight + 1
        return rows(input, Tensors(weight, None, residual), self._settings(activation))

    _asked = attrgetter("eps", "activation", "activation_args", "channel", "normalized_shape")

    def _make_settings(self) -> Settings:
        shape = self.normalized_shape
        return settings_of(
            "rms", self.eps, self.activation, self.activation_args, channel=self.channel, shape=shape
        )  # fmt: skip

    def _start_affine(self) -> None:
        super()._start_affine()
        if self.zero_centered and self.weight is not None:
            nn.init.constant_(self.weight, self.weight_init - 1)

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(super().extra_repr(), "zero_centered", "channel")
