"""Functions with torch.nn.functional's signatures, and evenly's extras as keywords.

Arguments are checked here, at the door; `evenly.nn.normalize` then chooses the path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenly.backends.running import Running
from evenly.core.activation import Activation
from evenly.core.partition import Partition
from evenly.core.running import ema
from evenly.nn import check
from evenly.nn.batch import Extras, batch
from evenly.nn.layout import layout
from evenly.nn.normalize import Call, normalize


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
    activation: str | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    zero_masked: bool = False,
    ghosts: int = 1,
    channel: int = 1,
) -> Tensor:
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
        channel: the channel axis.

    Returns:
        The output, of ``input``'s shape, type and memory format.

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
    if not training and (running_mean is None or running_var is None):
        raise ValueError("Expected running_mean and running_var to be defined when training=False")
    extras = Extras(Activation.of(activation, activation_args), residual, mask, zero_masked)
    if not training:
        assert running_mean is not None and running_var is not None
        return batch(input, weight, bias, eps, extras, given=(running_mean, running_var), channel=channel)
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, ema(momentum))
    return batch(input, weight, bias, eps, extras, running=running, ghosts=ghosts, channel=channel)


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
    activation: str | None = None,
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
    extras = Extras(Activation.of(activation, activation_args), residual, mask, zero_masked)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise ValueError("Expected running_mean and running_var to be defined when use_input_stats=False")
        return batch(input, weight, bias, eps, extras, given=(running_mean, running_var), channel=channel)
    check.check_input(input)
    channel = channel % input.ndim
    check.check_spatial(input, channel)
    check.check_channels(input, channel, ("weight", weight), ("bias", bias), ("running_mean", running_mean))
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, ema(momentum))
    x, shape, at, order = layout(input, channel, samples_first=True)
    call = Call(Partition.of_instance(shape, at), eps, extras.activation, zero_masked=zero_masked)
    return normalize(x, call, weight, bias, *extras.tensors(x, channel, order), running=running)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
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
    if input.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.ndim}")
    extras = Extras(Activation.of(activation, activation_args), residual, mask, zero_masked)
    check.check_input(input)
    channel = channel % input.ndim
    check.check_channels(input, channel, ("weight", weight), ("bias", bias))
    x, shape, at, order = layout(input, channel, samples_first=True)
    partition = Partition.of_group(shape, at, num_groups)
    if partition.numel == partition.group:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
    call = Call(partition, eps, extras.activation, zero_masked=zero_masked)
    return normalize(x, call, weight, bias, *extras.tensors(x, channel, order))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
) -> Tensor:
    """Layer normalization: one mean and variance per row of the last axes.

    Args:
        input: shape ``(*, *normalized_shape)``.
        normalized_shape: the last axes.
        weight: shape ``normalized_shape``, or None for 1.
        bias: shape ``normalized_shape``, or None for 0.
        eps: added to the variance.
        activation, activation_args, residual: as in `batch_norm`.

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
    extras = Extras(Activation.of(activation, activation_args), residual)
    return _rows(input, normalized_shape, weight, bias, eps, extras, "layer_norm", centered=True)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    activation_args: tuple[float, ...] = (),
    residual: Tensor | None = None,
) -> Tensor:
    """RMS normalization: ``y = activation(weight * x / sqrt(mean(x**2) + eps) + residual)`` per row.

    Args:
        input: shape ``(*, *normalized_shape)``.
        normalized_shape: the last axes.
        weight: shape ``normalized_shape``, or None for 1.
        eps: added to the mean square; None: the machine epsilon of the type computed in
            (float32's also for half precision, as torch).
        activation, activation_args, residual: as in `batch_norm`.

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
    if eps is None:
        eps = torch.finfo(torch.float64 if input.dtype == torch.float64 else torch.float32).eps
    extras = Extras(Activation.of(activation, activation_args), residual)
    return _rows(input, normalized_shape, weight, None, eps, extras, "rms_norm", centered=False)


def lengths_to_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """A mask of shape ``(N, size)``, True at the first ``lengths[n]`` places of sample n.

    Args:
        lengths: shape ``(N,)``, integers from 0 to ``size``.
        size: length of the padded sequences; None: the longest.

    Returns:
        Bool, shape ``(N, size)``.

    Raises:
        ValueError: a length is negative or exceeds ``size``.

    Example:
        >>> lengths_to_mask(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    if lengths.ndim != 1 or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be integers of shape (N,), got {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    low, high = (int(lengths.min()), int(lengths.max())) if lengths.numel() else (0, 0)
    size = high if size is None else size
    if low < 0 or high > size:
        raise ValueError(f"lengths must lie between 0 and size={size}, got {low} to {high}.")
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _rows(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
    norm: str,
    *,
    centered: bool,
) -> Tensor:
    check.check_input(input)
    check.check_rows(input, normalized_shape, norm)
    check.check_row_affine(normalized_shape, ("weight", weight), ("bias", bias))
    check.check_residual(input, extras.residual)
    x = input.contiguous()
    call = Call(Partition.of_layer(x.shape, len(normalized_shape)), eps, extras.activation, centered=centered)
    flat = [None if v is None else v.reshape(-1) for v in (weight, bias)]
    return normalize(x, call, *flat, extras.residual)
