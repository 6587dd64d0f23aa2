"""The layers of the family beside batch norm: torch.nn's classes, with evenly's extras as keywords."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evenly.core.activation import Activation
from evenly.nn import rows, samples
from evenly.nn.batch import Extras
from evenly.nn.fused import Fused
from evenly.nn.held import held
from evenly.nn.traced import leaf, traced

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
        activation: str | None = None,
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
        if traced(input):
            return leaf(self, input, residual=residual, activation=activation)
        extras = Extras(self._activation(activation), residual)
        weight, bias = held(self, "weight"), held(self, "bias")
        return rows.layer(input, self.normalized_shape, weight, bias, self.eps, extras, self.channel)

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
        activation: str | None = None,
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
        if traced(input):
            return leaf(self, input, residual=residual, activation=activation)
        extras = Extras(self._activation(activation), residual)
        weight = held(self, "weight")
        if self.zero_centered and weight is not None:
            weight = weight + 1
        return rows.rms(input, self.normalized_shape, weight, None, self.eps, extras, self.channel)

    def _start_affine(self) -> None:
        super()._start_affine()
        if self.zero_centered and self.weight is not None:
            nn.init.constant_(self.weight, self.weight_init - 1)

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(super().extra_repr(), "zero_centered", "channel")


class GroupNorm(Fused, nn.GroupNorm):
    """Group normalization: one mean and variance per sample and group of channels.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    Args:
        num_groups: how many groups; divides ``num_channels``.
        num_channels: number of channels C.
        eps: added to the variance.
        affine: whether there are weight and bias.
        device: of the parameters.
        dtype: of the parameters.
        bias: whether there is a bias (with ``affine``).
        scale: whether there is a weight (with ``affine``).
        zero_masked: whether the output is 0 where a mask is.
        channel: the channel axis.
        activation, activation_args, weight_init, bias_init: as in `evenly.BatchNorm`.

    Source:
        Wu and He, 2018, https://arxiv.org/abs/1803.08494

    Example:
        >>> import torch, evenly
        >>> evenly.GroupNorm(2, 6, activation="relu")(torch.randn(4, 6, 8, 8)).shape
        torch.Size([4, 6, 8, 8])
    """

    zero_masked: bool = False
    channel: int = 1

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        scale: bool = True,
        activation: str | None = None,
        activation_args: tuple[float, ...] = (),
        zero_masked: bool = False,
        channel: int = 1,
        weight_init: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self._set_activation(activation, activation_args)
        self._set_affine(scale=scale, bias=bias, weight_init=weight_init, bias_init=bias_init)
        self.zero_masked, self.channel = zero_masked, channel

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: Activation | None = None,
    ) -> Tensor:
        """The normalised input; ``residual`` is added before the layer's activation, or this call's.

        ``mask`` says what counts.
        """
        if traced(input):
            return leaf(self, input, residual=residual, mask=mask, activation=activation)
        extras = Extras(self._activation(activation), residual, mask, self.zero_masked)
        weight, bias = held(self, "weight"), held(self, "bias")
        return samples.group(input, self.num_groups, weight, bias, self.eps, extras, channel=self.channel)

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(super().extra_repr(), "zero_masked", "channel")
