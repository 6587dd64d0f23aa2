"""The layers of the family beside batch norm: torch.nn's classes, with evenly's extras as keywords."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from evenly.nn import functional
from evenly.nn.fused import Fused

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
        activation, activation_args: as in `evenly.BatchNorm`.

    Source:
        Ba, Kiros and Hinton, 2016, https://arxiv.org/abs/1607.06450

    Example:
        >>> import torch, evenly
        >>> evenly.LayerNorm(8, activation="gelu")(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        activation_args: tuple[float, ...] = (),
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)  # type: ignore[arg-type]
        self._set_activation(activation, activation_args)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The normalised input; ``residual`` is added before the activation."""
        return functional.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual, **self._fusion()
        )

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        return self._extra_repr(super().extra_repr())


class RMSNorm(Fused, nn.RMSNorm):
    """RMS normalization: rows divided by their root mean square.

    ``y = activation(weight * x / sqrt(mean(x**2) + eps) + residual)``

    Args:
        normalized_shape: the last axes, shape of weight.
        eps: added to the mean square; None: machine epsilon of the type computed in.
        elementwise_affine: whether there is a weight.
        device: of the parameters.
        dtype: of the parameters.
        activation, activation_args: as in `evenly.BatchNorm`.

    Source:
        Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467

    Example:
        >>> import torch, evenly
        >>> evenly.RMSNorm(8)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

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
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)  # type: ignore[arg-type]
        self._set_activation(activation, activation_args)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The normalised input; ``residual`` is added before the activation."""
        return functional.rms_norm(
            input, self.normalized_shape, self.weight, self.eps, residual=residual, **self._fusion()
        )

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        return self._extra_repr(super().extra_repr())


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
        activation, activation_args: as in `evenly.BatchNorm`.

    Source:
        Wu and He, 2018, https://arxiv.org/abs/1803.08494

    Example:
        >>> import torch, evenly
        >>> evenly.GroupNorm(2, 6, activation="relu")(torch.randn(4, 6, 8, 8)).shape
        torch.Size([4, 6, 8, 8])
    """

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
        activation: str | None = None,
        activation_args: tuple[float, ...] = (),
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)  # type: ignore[arg-type]
        if affine and not bias:
            self.register_parameter("bias", None)
        self._set_activation(activation, activation_args)

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The normalised input; ``residual`` is added before the activation, ``mask`` says what counts."""
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, residual=residual, mask=mask, **self._fusion()
        )

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        return self._extra_repr(super().extra_repr())


class _Instance(Fused, _InstanceNorm):
    """What InstanceNorm1d, 2d and 3d share; torch's class of the rank brings the checks."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        activation_args: tuple[float, ...] = (),
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)  # type: ignore[arg-type]
        if affine and not bias:
            self.register_parameter("bias", None)
        self._set_activation(activation, activation_args)

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The normalised input; ``residual`` is added before the activation, ``mask`` says what counts.

        As torch's, it also takes one sample without the batch axis.
        """
        self._check_input_dim(input)
        single = input.ndim == self._get_no_batch_dim()
        x, residual, mask = (t if t is None or not single else t[None] for t in (input, residual, mask))
        assert x is not None
        y = functional.instance_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0, self.eps,
            residual=residual, mask=mask, **self._fusion(),
        )  # fmt: skip
        return y[0] if single else y

    def extra_repr(self) -> str:
        """torch's, and the activation."""
        return self._extra_repr(super().extra_repr())


class InstanceNorm1d(_Instance, nn.InstanceNorm1d):
    """Instance normalization of ``(N, C, L)`` or ``(C, L)``: one mean per sample and channel.

    Example:
        >>> import torch, evenly
        >>> evenly.InstanceNorm1d(3)(torch.randn(2, 3, 5)).shape
        torch.Size([2, 3, 5])
    """


class InstanceNorm2d(_Instance, nn.InstanceNorm2d):
    """Instance normalization of ``(N, C, H, W)`` or ``(C, H, W)``."""


class InstanceNorm3d(_Instance, nn.InstanceNorm3d):
    """Instance normalization of ``(N, C, D, H, W)`` or ``(C, D, H, W)``."""
