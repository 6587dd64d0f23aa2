"""Functions with torch.nn.functional's signatures, and evenly's extras as keywords.

What the layers do, without their state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from evenly.backends.records import Given, Tensors
from evenly.backends.running import Running
from evenly.core.activation import ActivationName
from evenly.core.running import ema
from evenly.nn.batch import batch, statistics_after
from evenly.nn.mask import lengths_to_mask as lengths_to_mask
from evenly.nn.plan import Statistics
from evenly.nn.renorm import Renorm
from evenly.nn.rows import rows
from evenly.nn.samples import samples
from evenly.nn.settings import settings_of

P = ParamSpec("P")
R = TypeVar("R")


def _overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let tensor subclasses, torch-function modes and torch.fx have ``function`` as one call."""

    @wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        input = args[0] if args else kwargs["input"]
        if has_torch_function_unary(input):
            return handle_torch_function(door, (input,), *args, **kwargs)
        return function(*args, **kwargs)

    return door


@_overridable
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationName | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    zero_masked: bool = False,
    ghosts: int = 1,
    single: str = "error",
    renorm: Renorm | None = None,
    return_stats: bool = False,
    channel: int = 1,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Batch normalization: one mean and variance per channel, over samples and places.

    ``y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)``

    In training, mean and biased variance are those of the batch, and
    ``running <- momentum * (mean, unbiased variance) + (1 - momentum) * running``; a batch with
    a NaN or infinity leaves the running statistics alone. Else the running ones are used.

    Args:
        input: shape ``(N, C, *)``, floating point; channels last in memory is kept.
        running_mean: shape ``(C,)``, or None.
        running_var: shape ``(C,)``, or None.
        weight: scale, shape ``(C,)``, or None for 1.
        bias: shift, shape ``(C,)``, or None for 0.
        training: whether to use the batch's own statistics.
        momentum: weight of the new batch in the running statistics.
        eps: added to the variance.
        activation: None, ``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"elu"``, ``"silu"`` or ``"gelu"``.
        activation_args: the activation's parameter, if it has one.
        residual: added before the activation; ``input``'s shape.
        mask: bool (elements that count) or float (how much); ``input``'s shape without the
            channel axis, ``(N,)``, or a shape that broadcasts to it.
        zero_masked: whether the output is 0 where the mask is 0.
        ghosts: into how many parts the samples are cut, each with statistics of its own.
        single: what one value per channel in training means (see `evenly.BatchNorm`).
        renorm: correction towards the running statistics (see `evenly.Renorm`).
        return_stats: leave the running statistics as they are and return new ones instead, which
            torch.func's transforms need.
        channel: the channel axis.

    Returns:
        The output, of ``input``'s shape, type and memory format; with ``return_stats``
        ``(output, running_mean, running_var)``.

    Raises:
        ValueError: eps, shapes or the mask do not fit, or there is one value per channel.
        TypeError: the input is not floating point.

    Source:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(x, None, None, training=True, eps=1e-12, activation="relu")
        tensor([[0.],
                [1.]])
    """
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, ema(momentum))
    elif not training or return_stats:
        needs = "training=False" if not training else "return_stats=True"
        raise ValueError(f"Expected running_mean and running_var to be defined when {needs}")
    settings = settings_of(
        "batch", eps, activation, activation_args, channel=channel, parts=ghosts, zero_masked=zero_masked,
        single=single, renorm=renorm,
    )  # fmt: skip
    tensors = Tensors(weight, bias, residual, mask)
    statistics: Statistics = running if training or running is None else Given(running.mean, running.var)
    if not return_stats:
        return batch(input, tensors, statistics, settings)
    assert running_mean is not None and running_var is not None and running is not None
    if not training:
        return batch(input, tensors, statistics, settings), running_mean, running_var
    after = statistics_after(input, tensors, running, settings)
    return batch(input, tensors, running._replace(enters=False), settings), *after


@_overridable
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationName | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    zero_masked: bool = False,
    channel: int = 1,
) -> Tensor:
    """Instance normalization: one mean and variance per sample and channel, over places.

    Args:
        input: shape ``(N, C, *)`` with more than one place.
        running_mean: shape ``(C,)``, or None; the mean over the samples enters it.
        running_var: shape ``(C,)``, or None.
        weight: shape ``(C,)``, or None for 1.
        bias: shape ``(C,)``, or None for 0.
        use_input_stats: whether to use the input's own statistics, else the running ones.
        momentum: weight of the new batch in the running statistics.
        eps: added to the variance.
        activation, activation_args, residual, mask, zero_masked, channel: as in `batch_norm`.

    Returns:
        The output, of ``input``'s shape, type and memory format.

    Raises:
        ValueError: shapes or the mask do not fit, or there is one place only.
        TypeError: the input is not floating point.

    Source:
        Ulyanov, Vedaldi and Lempitsky, 2016, https://arxiv.org/abs/1607.08022

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]])
        >>> instance_norm(x, eps=0.0)
        tensor([[[-1.,  1.]],
        <BLANKLINE>
                [[-1.,  1.]]])
    """
    settings = settings_of(
        "instance", eps, activation, activation_args, channel=channel, zero_masked=zero_masked
    )  # fmt: skip
    tensors = Tensors(weight, bias, residual, mask)
    if running_mean is None or running_var is None:
        if not use_input_stats:
            raise ValueError("Expected running_mean and running_var to be defined when use_input_stats=False")
        return samples(input, tensors, None, settings)
    if not use_input_stats:
        return batch(input, tensors, Given(running_mean, running_var), settings)
    return samples(input, tensors, Running(running_mean, running_var, ema(momentum)), settings)


@_overridable
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationName | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    zero_masked: bool = False,
    channel: int = 1,
) -> Tensor:
    """Group normalization: one mean and variance per sample and group of channels.

    Args:
        input: shape ``(N, C, *)``.
        num_groups: how many groups; divides C.
        weight: shape ``(C,)``, or None for 1.
        bias: shape ``(C,)``, or None for 0.
        eps: added to the variance.
        activation, activation_args, residual, mask, zero_masked, channel: as in `batch_norm`.

    Returns:
        The output, of ``input``'s shape, type and memory format.

    Raises:
        ValueError: shapes or the mask do not fit, or groups do not divide the channels.
        RuntimeError: the input has less than two axes, as torch.
        TypeError: the input is not floating point.

    Source:
        Wu and He, 2018, https://arxiv.org/abs/1803.08494

    Example:
        >>> group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0.0)
        tensor([[-1.,  1., -1.,  1.]])
    """
    settings = settings_of(
        "group", eps, activation, activation_args, channel=channel, parts=num_groups, zero_masked=zero_masked
    )  # fmt: skip
    return samples(input, Tensors(weight, bias, residual, mask), None, settings)


@_overridable
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationName | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
    channel: int | None = None,
) -> Tensor:
    """Layer normalization: one mean and variance per row of the last axes.

    Args:
        input: shape ``(*, *normalized_shape)``.
        normalized_shape: the last axes.
        weight: shape ``normalized_shape``, or None for 1.
        bias: shape ``normalized_shape``, or None for 0.
        eps: added to the variance.
        activation, activation_args, residual: as in `batch_norm`.
        channel: an axis to normalise alone, ``normalized_shape`` being its size, e.g. 1 for the
            channels of ``(N, C, H, W)``, without a permute; None: the last axes.

    Returns:
        The output, of ``input``'s shape and type.

    Raises:
        RuntimeError: shapes do not fit, as torch.
        ValueError: the residual does not fit.
        TypeError: the input is not floating point.

    Source:
        Ba, Kiros and Hinton, 2016, https://arxiv.org/abs/1607.06450

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), (2,), eps=0.0)
        tensor([[-1.,  1.],
                [-1.,  1.]])
    """
    settings = settings_of("layer", eps, activation, activation_args, channel=channel, shape=normalized_shape)
    return rows(input, Tensors(weight, bias, residual), settings)


@_overridable
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: ActivationName | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
    channel: int | None = None,
) -> Tensor:
    """RMS normalization: ``y = activation(weight * x / sqrt(mean(x**2) + eps) + residual)`` per row.

    Args:
        input: shape ``(*, *normalized_shape)``.
        normalized_shape: the last axes.
        weight: shape ``normalized_shape``, or None for 1.
        eps: added to the mean square; None: the machine epsilon of the type computed in
            (float32's also for half precision, as torch).
        activation, activation_args, residual: as in `batch_norm`.
        channel: an axis to normalise alone, ``normalized_shape`` being its size, e.g. 1 for the
            channels of ``(N, C, H, W)``, without a permute; None: the last axes.

    Returns:
        The output, of ``input``'s shape and type.

    Raises:
        RuntimeError: shapes do not fit, as torch.
        ValueError: the residual does not fit.
        TypeError: the input is not floating point.

    Source:
        Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467

    Example:
        >>> rms_norm(torch.tensor([[3.0, 3.0]]), (2,), eps=0.0)
        tensor([[1., 1.]])
    """
    settings = settings_of("rms", eps, activation, activation_args, channel=channel, shape=normalized_shape)
    return rows(input, Tensors(weight, None, residual), settings)
