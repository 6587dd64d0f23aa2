"""Wrong arguments are refused here, once, before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def check_input(x: Tensor) -> None:
    """Refuse what cannot be normalised: integer, complex, nested and sparse tensors."""
    if x.is_nested:
        raise TypeError("a nested tensor has no common shape; use nested.to_padded_tensor(0.0) and pass mask=.")
    if x.is_complex():
        raise TypeError(
            f"complex input ({x.dtype}) has no single variance; normalize torch.view_as_real(x), or real and "
            "imaginary part as channels."
        )
    if not x.is_floating_point():
        raise TypeError(f"input must be floating point, got {x.dtype}; use x.float().")
    if x.is_sparse:
        raise TypeError("sparse input cannot be normalized in place of its zeros; use x.to_dense().")


def check_channels(x: Tensor, channel: int, *vectors: tuple[str, Tensor | None]) -> None:
    """Refuse weight, bias or running statistics whose length is not the number of channels."""
    channels = x.shape[channel]
    expected = (channels,)
    for name, vector in vectors:
        if vector is not None and vector.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)}, but the input of shape {tuple(x.shape)} has {channels} "
                f"channels on axis {channel}; they must agree (shape ({channels},))."
            )


def check_residual(x: Tensor, residual: Tensor | None) -> None:
    """Refuse a residual that is not of the input's shape."""
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}, but the input has {tuple(x.shape)}; they must be equal "
            "(residual.expand_as(x) broadcasts)."
        )


def with_residual(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Input and residual in their common type, as torch's addition would have them; refused where shapes differ."""
    check_residual(x, residual)
    if residual is None or residual.dtype == x.dtype:
        return x, residual
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return x.to(dtype), residual.to(dtype)


def check_batch_eps(eps: float, training: bool) -> None:
    """Refuse an epsilon that torch refuses: negative, or not positive in training."""
    if eps < 0 or (training and eps == 0):
        rule = "must be positive during training" if training else "must be non-negative"
        raise ValueError(f"batch_norm eps {rule}, but got {eps}; the default is 1e-5.")


def check_ghosts(x: Tensor, channel: int, ghosts: int) -> int:
    """How many parts the samples are cut into, each with two values per channel or more.

    Refused where axis 0 is the channels'.
    """
    if ghosts > 1 and channel == 0:
        raise ValueError(f"ghost batches are parts of axis 0, which holds the channels (channel={channel}).")
    if ghosts == 1:
        return 1
    # A part with one value per channel would have no variance.
    most = x.shape[0] // 2 if x.numel() == x.shape[0] * x.shape[channel] else x.shape[0]
    return max(1, min(ghosts, most))


def one_value_per_channel(x: Tensor, channel: int) -> bool:
    """Whether a channel has one value: its variance says nothing."""
    return x.numel() == x.shape[channel] > 0


def one_value_error(x: Tensor) -> ValueError:
    """What to say of a batch with one value per channel."""
    return ValueError(
        f"Expected more than 1 value per channel when training, got input size {x.shape}; use a larger batch, "
        'call eval(), or construct the layer with single="skip" or single="running".'
    )


def check_rows(x: Tensor, normalized_shape: Sequence[int], norm: str) -> None:
    """Refuse input whose last axes are not ``normalized_shape``."""
    shape = tuple(normalized_shape)
    if not shape:
        raise RuntimeError(f"{norm} expected normalized_shape to be at least 1-dimensional, got ().")
    if tuple(x.shape[-len(shape) :]) != shape or x.ndim < len(shape):
        raise RuntimeError(
            f"{norm}: normalized_shape={shape} must be the input's last {len(shape)} axes, got input of shape "
            f"{tuple(x.shape)}; set normalized_shape={tuple(x.shape[-len(shape) :])}."
        )


def check_one_axis(x: Tensor, normalized_shape: Sequence[int], channel: int, norm: str) -> None:
    """Refuse ``channel=`` where ``normalized_shape`` is not that axis's size."""
    if tuple(normalized_shape) != (x.shape[channel],):
        raise RuntimeError(
            f"{norm} over axis {channel} alone needs normalized_shape=({x.shape[channel]},) for input of shape "
            f"{tuple(x.shape)}, got {tuple(normalized_shape)}."
        )


def check_row_affine(normalized_shape: Sequence[int], *vectors: tuple[str, Tensor | None]) -> None:
    """Refuse weight or bias of another shape than ``normalized_shape``."""
    shape = tuple(normalized_shape)
    for name, vector in vectors:
        if vector is not None and tuple(vector.shape) != shape:
            raise RuntimeError(f"{name} must have the shape normalized_shape={shape}, got {tuple(vector.shape)}.")


def check_spatial(x: Tensor, channel: int) -> None:
    """Refuse instance norm over one element, as torch does."""
    places = prod([size for axis, size in enumerate(x.shape) if axis not in (0, channel)])
    if places == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.shape}")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is not one of ``known``."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_renorm(renorm: object, ghosts: int, tracks: bool) -> None:
    """Refuse batch renormalization where there is nothing, or not one thing, to correct."""
    if renorm is not None and (ghosts > 1 or not tracks):
        raise ValueError(
            f"renorm corrects one batch towards the running statistics; it needs ghosts=1 and "
            f"track_running_stats=True, got ghosts={ghosts}, track_running_stats={tracks}."
        )


def check_positive(name: str, value: int) -> None:
    """Refuse anything but an integer from 1 on."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_sync(sync: bool, ghosts: int) -> None:
    """Refuse statistics that are shared by processes and split into ghosts at once."""
    if sync and ghosts != 1:
        raise ValueError(
            f"sync=True takes statistics over the batches of all processes, ghosts={ghosts} over parts of one; "
            "choose one (ghosts=1, or sync=False)."
        )
