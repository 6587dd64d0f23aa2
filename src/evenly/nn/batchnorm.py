"""Batch normalization as a layer, for any rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.backends.running import Running
from evenly.core import running as averages
from evenly.core.activation import Activation
from evenly.nn import check
from evenly.nn.batch import Extras, batch
from evenly.nn.fused import Fused
from evenly.nn.recompute import recomputing
from evenly.nn.sync import Processes, processes


class BatchNorm(Fused, _BatchNorm):
    """Batch normalization for input of any rank: dense, sequence, image, volume.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    In training, mean and biased variance are those of the mini-batch, and running statistics
    are averaged beside; in evaluation the running statistics are used. State, arguments and
    defaults are torch.nn.BatchNorm2d's; what follows ``*`` is evenly's.

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: weight of the new batch in the running statistics; None: cumulative average.
        affine: whether there are weight and bias.
        track_running_stats: whether running statistics are kept; without them evaluation, too,
            uses the batch's own.
        device: of parameters and buffers.
        dtype: of the parameters; running statistics are float32, or float64 with float64.
        bias: whether there is a bias (with ``affine``).
        scale: whether there is a weight (with ``affine``).
        activation: applied last: None, ``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"elu"``,
            ``"silu"`` or ``"gelu"``.
        activation_args: the activation's parameter, if it has one.
        average: ``"ema"`` or ``"debiased"`` (an exponential average without the pull of its
            initial value).
        unbiased: whether the running variance averages unbiased variances (torch) or biased (Keras).
        nonfinite: ``"skip"`` leaves a batch with NaN or infinity out of the running statistics
            and counts it in ``skipped_batches``; ``"write"`` lets it in, as torch does.
        ghosts: into how many parts the batch is cut, each with statistics of its own.
        zero_masked: whether the output is 0 where a mask is.
        sync: whether processes share their statistics in training (see `SyncBatchNorm`).
        process_group: the processes that do; None for all. A copied or unpickled layer has the
            group's name in its place.
        channel: the channel axis.

    Raises:
        ValueError: an argument is out of its range, or ``ghosts`` and ``sync`` contradict each other.

    Source:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167

    Example:
        >>> import torch, evenly
        >>> layer = evenly.BatchNorm(3, activation="relu")
        >>> x, skip = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
        >>> layer(x, residual=skip).shape
        torch.Size([8, 3, 4, 4])
    """

    skipped_batches: Tensor | None
    # torch's classes of one rank bring their own check; a method of that name here would shadow it.
    _checks_rank = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        scale: bool = True,
        activation: str | None = None,
        activation_args: tuple[float, ...] = (),
        average: str = "ema",
        unbiased: bool = True,
        nonfinite: str = "skip",
        ghosts: int = 1,
        zero_masked: bool = False,
        sync: bool = False,
        process_group: dist.ProcessGroup | str | None = None,
        channel: int = 1,
    ) -> None:
        averages.average(average, 0.1)
        check.check_batch_eps(eps, training=False)
        check.check_choice("nonfinite", nonfinite, ("skip", "write"))
        check.check_positive("ghosts", ghosts)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if affine and not scale:
            self.register_parameter("weight", None)
        if affine and not bias:
            self.register_parameter("bias", None)
        self._set_activation(activation, activation_args)
        self.average, self.unbiased, self.nonfinite = average, unbiased, nonfinite
        self.ghosts, self.zero_masked, self.channel = ghosts, zero_masked, channel
        check.check_sync(sync, ghosts)
        self.sync, self.process_group = sync, process_group
        skipped = torch.zeros((), dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("skipped_batches", skipped, persistent=False)
        self._widen_statistics(self._buffers.copy())

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The normalised input.

        Args:
            input: shape ``(N, C, *)``.
            residual: added before the activation; ``input``'s shape.
            mask: which positions count, or how much (see `evenly.functional.batch_norm`).
        """
        if self._checks_rank:
            self._check_input_dim(input)
        extras = Extras(Activation.of(self.activation, self.activation_args), residual, mask, self.zero_masked)
        given, running = self._statistics()
        return batch(
            input, self.weight, self.bias, self.eps, extras,
            given=given, running=running, ghosts=self.ghosts, channel=self.channel, group=self._processes(),
        )  # fmt: skip

    def _statistics(self) -> tuple[tuple[Tensor, Tensor] | None, Running | None]:
        """The statistics to use, or the buffers to update: torch's three flags, read in one place."""
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return (None, None) if mean is None or var is None else ((mean, var), None)
        if mean is None or var is None or not self.track_running_stats or recomputing():
            return None, None
        average = averages.average(self.average, self.momentum)
        skip = self.nonfinite == "skip"
        running = Running(mean, var, average, self.num_batches_tracked, self.skipped_batches, self.unbiased, skip)
        return None, running

    def _processes(self) -> Processes | None:
        """Those that share statistics in this call; None where there is nobody to share with."""
        return processes(self.process_group) if self.sync and self.training else None

    def __getstate__(self) -> dict[str, Any]:
        """As torch's, but a process group, which cannot be copied or pickled, goes by its name."""
        group = self.process_group
        return {**super().__getstate__(), "process_group": getattr(group, "group_name", group)}

    def reset_running_stats(self) -> None:
        """Zero mean, unit variance, no batches seen, none skipped."""
        super().reset_running_stats()
        if getattr(self, "skipped_batches", None) is not None:
            self.skipped_batches.zero_()

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        defaults = {
            "average": "ema", "unbiased": True, "nonfinite": "skip", "ghosts": 1, "zero_masked": False, "sync": False,
            "channel": 1,
        }  # fmt: skip
        text = self._extra_repr(super().extra_repr())
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value!r}"
        return text

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """As torch's, but half precision leaves the running statistics in float32."""
        before = self._buffers.copy()
        super()._apply(fn, recurse)
        self._widen_statistics(before)
        return self

    def _widen_statistics(self, before: dict[str, Tensor | None]) -> None:
        """Put back ``before``'s values where a buffer would be narrower than float32."""
        for name in ("running_mean", "running_var"):
            now, old = self._buffers[name], before[name]
            if now is not None and old is not None and now.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = old.to(now.device, torch.float32)


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`BatchNorm` for input of shape ``(N, C)`` or ``(N, C, L)``; other ranks are refused as torch does."""

    _checks_rank = True


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`BatchNorm` for input of shape ``(N, C, H, W)``; other ranks are refused as torch does."""

    _checks_rank = True


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`BatchNorm` for input of shape ``(N, C, D, H, W)``; other ranks are refused as torch does."""

    _checks_rank = True


class SyncBatchNorm(BatchNorm):
    """`BatchNorm` whose mini-batch is that of all processes together (`torch.distributed`).

    Mean and variance are taken over every process's elements, merged by count, so that unequal,
    empty and masked local batches give what one process would give on all the data; running
    statistics are the same bits everywhere. Works wherever the process group does, with gloo on
    the CPU and nccl on the GPU; in evaluation and with one process nothing is sent. The gradients
    of weight and bias are this process's own part, which DistributedDataParallel averages.

    Every process must take the same steps; one that is out of data goes on with empty batches,
    or the others raise when the group's timeout has passed.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, extras: as
            `BatchNorm`'s; in torch.nn.SyncBatchNorm's order.
        process_group: the processes that share statistics; None for all.

    Source:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167; the merge is Chan, Golub and
        LeVeque's, 1979.

    Example:
        >>> import torch, evenly
        >>> layer = evenly.SyncBatchNorm(3)        # alone it is a BatchNorm
        >>> layer(torch.randn(8, 3, 4, 4)).shape
        torch.Size([8, 3, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **extras: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            sync=True, process_group=process_group, **extras,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """`BatchNorm`'s; that it is synchronised its name says."""
        return super().extra_repr().replace(", sync=True", "")
