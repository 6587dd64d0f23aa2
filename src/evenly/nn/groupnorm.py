"""Group normalization as a layer."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn

from evenly.backends.records import Tensors
from evenly.core.activation import Activation, ActivationName
from evenly.nn.layer import Fused, leaf, state_of, traced
from evenly.nn.samples import samples
from evenly.nn.settings import Settings, settings_of

Device = torch.device | str | None


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
        activation: ActivationName | None = None,
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
        if type(input) is not Tensor and traced(input):
            return leaf(self, input, residual=residual, mask=mask, activation=activation)
        weight, bias = state_of(self, "weight", "bias")
        tensors = Tensors(weight, bias, residual, mask)
        return samples(input, tensors, None, self._settings(activation))

    _asked = attrgetter("eps", "activation", "activation_args", "channel", "num_groups", "zero_masked")

    def _make_settings(self) -> Settings:
        return settings_of(
            "group", self.eps, self.activation, self.activation_args, channel=self.channel, parts=self.num_groups,
            zero_masked=self.zero_masked,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(super().extra_repr(), "zero_masked", "channel")
