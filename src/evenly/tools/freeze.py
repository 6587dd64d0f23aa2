"""Fixed statistics: batch norms that stay in evaluation form while the rest trains."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from evenly.tools import walk

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Fix the running statistics of every batch norm, also under ``.train()``.

    ``y = weight * (x - running_mean) / sqrt(running_var + eps) + bias``, in training as in
    evaluation: statistics are neither measured nor updated. Weight and bias stay trainable.

    Nothing of the model changes but a hook on each norm, which keeps it in evaluation form:
    classes, keys of the state_dict, copies and pickles are as before.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = freeze(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).train()
        >>> _ = model(torch.randn(8, 3))
        >>> int(model[1].num_batches_tracked)
        0
    """
    for norm in walk.tracking(model).values():
        hold(norm)
    return model


def unfreeze(model: Model) -> Model:
    """Undo `freeze`; the norms take the model's own mode.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Example:
        >>> from torch import nn
        >>> unfreeze(freeze(nn.BatchNorm1d(4))).train().training
        True
    """
    for norm in walk.tracking(model).values():
        if is_frozen(norm):
            release(norm)
            norm.training = True if norm is model else model.training
    return model


def hold(norm: nn.Module) -> None:
    """Freeze one norm."""
    if not is_frozen(norm):
        norm.register_forward_pre_hook(_evaluate)
    norm.training = False


def release(norm: nn.Module) -> None:
    """Take the hook of `hold` away."""
    for key in [key for key, hook in norm._forward_pre_hooks.items() if hook is _evaluate]:
        del norm._forward_pre_hooks[key]


def is_frozen(norm: nn.Module) -> bool:
    """Whether `freeze` holds this norm's statistics."""
    return any(hook is _evaluate for hook in norm._forward_pre_hooks.values())


def _evaluate(norm: nn.Module, args: Any) -> None:
    """Run this call, and what reads the flag, in evaluation form; ``.train()`` cannot undo a hook."""
    if norm.training:
        norm.training = False
