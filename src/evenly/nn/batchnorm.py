"""Batch normalization as a layer, for any rank."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.backends.records import Given, Tensors
from evenly.backends.running import Running
from evenly.core import running as averages
from evenly.core.activation import Activation, ActivationName
from evenly.nn import check, lazy
from evenly.nn.batch import batch
from evenly.nn.layer import Fused, leaf, state_of, traced
from evenly.nn.renorm import Renorm
from evenly.nn.settings import Settings, settings_of
from evenly.nn.sync import Processes, processes
from evenly.nn.sync_convert import FromBatchNorms
from evenly.nn.tracked import Tracked

_OTHERS = attrgetter("activation", "activation_args", "channel", "ghosts", "zero_masked", "single", "renorm", "inplace")


class BatchNorm(Fused, Tracked, _BatchNorm):
    """Batch normalization for input of any rank: dense, sequence, image, volume.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    In training, mean and biased variance are those of the mini-batch, and running statistics
    are averaged beside; in evaluation the running statistics are used. State, arguments and
    defaults are torch.nn.BatchNorm2d's; what follows ``*`` is evenly's.

    Args:
        num_features: number of channels C; None: taken from the first input.
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
        inplace: with an invertible activation (None, leaky ReLU, ELU) save the output alone and
            restore the input from it in backward, wherever that is exact to rounding (float32 or
            float64, no residual or mask, no weight smaller than a sixteenth of its bias); else,
            and for second derivatives, the input is needed as usual.
        average: ``"ema"`` or ``"debiased"`` (an exponential average without the pull of its
            initial value).
        unbiased: whether the running variance averages unbiased variances (torch) or biased (Keras).
        nonfinite: ``"skip"`` leaves a batch with NaN or infinity out of the running statistics
            and counts it in ``skipped_batches``; ``"write"`` lets it in, as torch does.
        single: what one value per channel in training means: ``"error"``, as torch; ``"skip"``:
            normalised to 0 and not entered into the running statistics; ``"running"``:
            normalised by the running statistics and not entered. Told from shapes, not from a mask.
        ghosts: into how many parts the batch is cut (as torch.tensor_split does), each with
            statistics of its own; at most as many as there are samples, or pairs of samples where
            a sample has one value per channel. The mean of the parts' statistics enters the
            running ones once.
        renorm: `Renorm`, to correct small batches towards the running statistics; not with ghosts.
        accumulate: how many micro-batches enter the running statistics as one, pooled by their
            counts: as if their samples had come as one batch.
        zero_masked: whether the output is 0 where a mask is.
        sync: whether processes share their statistics in training (see `SyncBatchNorm`).
        process_group: the processes that do; None for all. A copied or unpickled layer has the
            group's name in its place.
        channel: the channel axis.
        weight_init: what the weight starts from (0 makes a residual branch start silent).
        bias_init: what the bias starts from.

    Raises:
        ValueError: an argument is out of its range, or two contradict each other.

    Source:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167

    Example:
        >>> import torch, evenly
        >>> layer = evenly.BatchNorm(3, activation="relu")
        >>> x, skip = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
        >>> layer(x, residual=skip).shape
        torch.Size([8, 3, 4, 4])
    """

    # torch's classes of one rank bring their own check; a method of that name here would shadow it.
    _checks_rank = False
    inplace: bool = False
    average: str = "ema"
    unbiased: bool = True
    nonfinite: str = "skip"
    single: str = "error"
    ghosts: int = 1
    renorm: Renorm | None = None
    accumulate: int = 1
    zero_masked: bool = False
    sync: bool = False
    process_group: dist.ProcessGroup | str | None = None
    channel: int = 1

    def __init__(
        self,
        num_features: int | None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        scale: bool = True,
        activation: ActivationName | None = None,
        activation_args: tuple[float, ...] = (),
        inplace: bool = False,
        average: str = "ema",
        unbiased: bool = True,
        nonfinite: str = "skip",
        single: str = "error",
        ghosts: int = 1,
        renorm: Renorm | None = None,
        accumulate: int = 1,
        zero_masked: bool = False,
        sync: bool = False,
        process_group: dist.ProcessGroup | str | None = None,
        channel: int = 1,
        weight_init: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        averages.average(average, 0.1)
        check.check_batch_eps(eps, training=False)
        check.check_choice("nonfinite", nonfinite, ("skip", "write"))
        check.check_choice("single", single, ("error", "skip", "running"))
        check.check_positive("ghosts", ghosts)
        check.check_positive("accumulate", accumulate)
        check.check_sync(sync, ghosts)
        check.check_renorm(renorm, ghosts, track_running_stats)
        super().__init__(num_features or 0, eps, momentum, affine, track_running_stats, device, dtype)
        self._set_activation(activation, activation_args)
        self.inplace, self.average, self.unbiased, self.nonfinite = inplace, average, unbiased, nonfinite
        self.single, self.ghosts, self.renorm, self.accumulate = single, ghosts, renorm, accumulate
        self.zero_masked, self.channel = zero_masked, channel
        self.sync, self.process_group = sync, process_group
        self._set_affine(scale=scale, bias=bias, weight_init=weight_init, bias_init=bias_init)
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
        """The normalised input.

        Args:
            input: shape ``(N, C, *)``.
            residual: added before the activation; ``input``'s shape.
            mask: which positions count, or how much (see `evenly.functional.batch_norm`).
            activation: for this call, in place of the layer's own.
        """
        if type(input) is not Tensor and traced(input):
            return leaf(self, input, residual=residual, mask=mask, activation=activation)
        if self._checks_rank:
            self._check_input_dim(input)
        settings = self._settings(activation)
        weight, bias = state_of(self, "weight", "bias")
        tensors = Tensors(weight, bias, residual, mask)
        return batch(input, tensors, self._statistics(), settings, self._processes() if self.sync else None)

    def _asked(self) -> tuple[Any, ...]:
        # Not self.eps, which looks who asks.
        return self.__dict__["eps"], *_OTHERS(self)

    def _make_settings(self) -> Settings:
        return settings_of(
            "batch", self.eps, self.activation, self.activation_args, channel=self.channel, parts=self.ghosts,
            zero_masked=self.zero_masked, single=self.single, renorm=self.renorm, inplace=self.inplace,
        )  # fmt: skip

    def _statistics(self) -> Running | Given | None:
        """The statistics to use, or the buffers to update: torch's three flags, read in one place."""
        mean, var, batches = state_of(self, "running_mean", "running_var", "num_batches_tracked")
        if mean is None or var is None:
            return None
        if not self.training or self.frozen:
            return Given(mean, var)
        if not self.track_running_stats:
            return None
        return Running(
            mean, var, averages.average(self.average, self.momentum), batches,
            None if batches is None else self._skipped(mean), self.unbiased, self.nonfinite == "skip",
            self._pending() if self.accumulate > 1 else None,
        )  # fmt: skip

    def _processes(self) -> Processes | None:
        """Those that share statistics in this call; None where there is nobody to share with."""
        if not self.training or self.frozen:
            return None
        found = processes(self.process_group)
        return found if found is None or self.single == "error" else replace(found, refuses_single=False)

    def __getstate__(self) -> dict[str, Any]:
        """As torch's, but a process group, which cannot be copied or pickled, goes by its name."""
        group = self.process_group
        return {**super().__getstate__(), "process_group": getattr(group, "group_name", group)}

    def extra_repr(self) -> str:
        """torch's, and evenly's extras where they are not at their defaults."""
        return self._described(
            super().extra_repr(), "inplace", "average", "unbiased", "nonfinite", "single", "ghosts", "renorm",
            "accumulate", "zero_masked", "sync", "channel", "frozen",
        )  # fmt: skip


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`BatchNorm` for input of shape ``(N, C)`` or ``(N, C, L)``; other ranks are refused as torch does."""

    _checks_rank = True


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`BatchNorm` for input of shape ``(N, C, H, W)``; other ranks are refused as torch does."""

    _checks_rank = True


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`BatchNorm` for input of shape ``(N, C, D, H, W)``; other ranks are refused as torch does."""

    _checks_rank = True


class SyncBatchNorm(FromBatchNorms, BatchNorm):
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

    sync: bool = True

    def __init__(
        self,
        num_features: int | None,
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
