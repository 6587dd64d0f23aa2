"""Fixed statistics: batch norms that stay in evaluation form while the rest trains."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn

from evenly.nn.tracked import Tracked, adopt
from evenly.tools import walk
from evenly.tools.pairs import OURS, back_to_torch, evenly_of, origin_of

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Fix the running statistics of every batch norm, also under ``.train()``.

    ``y = weight * (x - running_mean) / sqrt(running_var + eps) + bias``, in training as in
    evaluation: statistics are neither measured nor updated. Weight and bias stay trainable.

    torch.nn's batch norms become evenly's with ``frozen=True``, in place, and remember what they
    were: so it holds in models that were compiled before, and what would wipe or replace the
    statistics (weight averaging, sync converters) leaves them alone or raises. Layers of somebody
    else's class get a hook that keeps them in evaluation form; torch.compile does not look at
    hooks anew, so a warning names these. Keys of the state_dict, copies and pickles are as before.

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
    by_hooks = [name for name, norm in walk.tracking(model).items() if not hold(norm)]
    if by_hooks:
        more = f" and {len(by_hooks) - 8} more" if len(by_hooks) > 8 else ""
        warnings.warn(
            f"evenly.freeze holds by hooks, for their classes are not torch.nn's: {', '.join(by_hooks[:8])}{more}. "
            "torch.compile does not look at hooks anew: freeze before compiling.",
            stacklevel=2,
        )
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


def hold(norm: nn.Module) -> bool:
    """Freeze one norm; whether that holds by itself, and not by a hook."""
    cls = type(norm)
    ours = evenly_of(norm)
    if ours is not None:
        adopt(norm, ours)
        vars(norm)["_frozen_from"] = cls
    if isinstance(norm, Tracked):
        norm.frozen = True
        return True
    if not is_frozen(norm):
        norm.register_forward_pre_hook(_evaluate)
    norm.training = False
    return False


def release(norm: nn.Module) -> None:
    """Undo `hold`, and whatever else froze the norm."""
    if isinstance(norm, Tracked):
        norm.frozen = False
        origin: type[nn.Module] | None = vars(norm).pop("_frozen_from", None)
        if origin is not None and type(norm) in OURS and origin_of(norm) is origin:
            back_to_torch(norm)
    for key in [key for key, hook in norm._forward_pre_hooks.items() if hook is _evaluate]:
        del norm._forward_pre_hooks[key]


def is_frozen(norm: nn.Module) -> bool:
    """Whether this norm's statistics are fixed, whatever fixed them."""
    if isinstance(norm, Tracked) and norm.frozen:
        return True
    return any(hook is _evaluate for hook in norm._forward_pre_hooks.values())


def _evaluate(norm: nn.Module, args: Any) -> None:
    """Run this call, and what reads the flag, in evaluation form; ``.train()`` cannot undo a hook."""
    if norm.training:
        norm.training = False
