"""Instance normalization as a layer, for each rank."""

from __future__ import annotations

import warnings
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from evenly.backends.records import Given, Tensors
from evenly.backends.running import Running
from evenly.core.activation import Activation, ActivationName
from evenly.core.running import ema
from evenly.nn import lazy
from evenly.nn.batch import batch
from evenly.nn.layer import Fused, leaf, state_of, traced
from evenly.nn.samples import samples
from evenly.nn.settings import Settings, settings_of
from evenly.nn.tracked import Tracked

_OTHERS = attrgetter("activation", "activation_args", "zero_masked")


class _Instance(Fused, Tracked, _InstanceNorm):
    """Instance normalization: one mean and variance per sample and channel, over places.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    Args:
        num_features: number of channels C; None: taken from the first input.
        eps: added to the variance.
        momentum: weight of the new batch in the running statistics.
        affine: whether there are weight and bias.
        track_running_stats: whether running statistics are kept, and used in evaluation.
        device: of parameters and buffers.
        dtype: of the parameters; running statistics are float32, or float64 with float64.
        bias: whether there is a bias (with ``affine``).
        scale: whether there is a weight (with ``affine``).
        activation, activation_args, zero_masked, weight_init, bias_init: as in `evenly.BatchNorm`.

    Source:
        Ulyanov, Vedaldi and Lempitsky, 2016, https://arxiv.org/abs/1607.08022
    """

    zero_masked: bool = False

    def __init__(
        self,
        num_features: int | None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        scale: bool = True,
        activation: ActivationName | None = None,
        activation_args: tuple[float, ...] = (),
        zero_masked: bool = False,
        weight_init: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__(num_features or 0, eps, momentum, affine, track_running_stats, device, dtype)
        self._set_activation(activation, activation_args)
        self._set_affine(scale=scale, bias=bias, weight_init=weight_init, bias_init=bias_init)
        self.zero_masked = zero_masked
        self._complete()
        if num_features is None:
            lazy.wait_for_input(self)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: Activation | None = None,
    ) -> Tensor:
        """The normalised input; ``residual`` is added before the activation, ``mask`` says what counts.

        As torch's, it also takes one sample without the batch axis.
        """
        if type(input) is not Tensor and traced(input):
            return leaf(self, input, residual=residual, mask=mask, activation=activation)
        self._check_input_dim(input)
        single = input.ndim == self._get_no_batch_dim()
        x, residual, mask = (t if t is None or not single else t[None] for t in (input, residual, mask))
        assert x is not None
        weight, bias = state_of(self, "weight", "bias")
        tensors = Tensors(weight, bias, residual, mask)
        y = self._normalized(x, tensors, self._settings(activation))
        return y[0] if single else y

    def _asked(self) -> tuple[Any, ...]:
        # Not self.eps, which looks who asks.
        return self.__dict__["eps"], *_OTHERS(self)

    def _make_settings(self) -> Settings:
        return settings_of(
            "instance", self.eps, self.activation, self.activation_args, zero_masked=self.zero_masked
        )  # fmt: skip

    def _normalized(self, x: Tensor, tensors: Tensors, settings: Settings) -> Tensor:
        mean, var = state_of(self, "running_mean", "running_var")
        if mean is None or var is None:
            if not self.affine and x.shape[1] != self.num_features:
                warnings.warn(
                    f"input has {x.shape[1]} channels, num_features={self.num_features}; "
                    "without weights it is not used.",
                    stacklevel=3,
                )
            return samples(x, tensors, None, settings)
        if self.frozen or not (self.training or not self.track_running_stats):
            return batch(x, tensors, Given(mean, var), settings)
        average = ema(self.momentum if self.momentum is not None else 0.0)
        running = Running(mean, var, average, skipped=self._skipped(mean))
        return samples(x, tensors, running, settings)

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(super().extra_repr(), "zero_masked", "frozen")


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
