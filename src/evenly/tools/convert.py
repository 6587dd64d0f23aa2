"""torch.nn's norms to evenly's and back, in place.

Only ``module.__class__`` changes: parameters, buffers, hooks, sharing, device, type and mode are
not touched, because nothing is rebuilt.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn

from evenly.nn.tracked import adopt
from evenly.tools import fuse as fusing
from evenly.tools import kinds, redundant, walk
from evenly.tools.flow import Unreadable
from evenly.tools.norm_act import BatchNormAct2d
from evenly.tools.pairs import EVENLY_OF, OURS, back_to_torch, beyond_torch, evenly_of

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, *, fuse: bool = False, norm: str | None = None, drop_bias: bool = False) -> Model:
    """Turn torch.nn's norms into evenly's, in place.

    Every layer computes what it computed before; parameters, buffers, state_dict keys, hooks,
    sharing, device, type, ``training`` and ``requires_grad`` stay. What cannot be converted
    (parametrized norms, classes of somebody else) or read is left alone, and a warning names it.

    Args:
        model: any module; a norm by itself too.
        fuse: whether norms also take the activation and the residual that follow them, where the
            data flow of the smallest block around them proves it. The block gets a generated
            subclass of its class; where hooks or tracers look on, its own forward runs.
        norm: None keeps each norm's kind. Else every batch norm becomes ``"group:8"`` (groups),
            ``"group"`` (32 groups, or the largest divisor of the channels below), ``"layer"`` (one
            group), ``"instance"`` (a group for each channel), ``"ghost:8"`` (parts of the batch),
            ``"sync"`` (statistics shared by processes), ``"frozen"`` (statistics fixed) or
            ``"batch"`` (none of these).
        drop_bias: whether to remove biases that a norm subtracts again: of a convolution or dense
            layer that only a batch or instance norm reads (a dense layer's output taken to be
            ``(N, C)``). Running means move along. This is not undone by `revert`.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: ``norm`` is unknown, or does not fit a layer; nothing is changed then.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> model = convert(model, fuse=True, drop_bias=True)
        >>> type(model).__name__, model[0].bias, type(model[1]).__module__
        ('FusedSequential', None, 'evenly.nn.batchnorm')
    """
    switch = None if norm is None else kinds.switch(norm, model)
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        vars(module).pop("_frozen_from", None)  # asked to be ours: `evenly.unfreeze` leaves it so
        ours = evenly_of(module)
        if ours is BatchNormAct2d and switch is not None:
            left[name] = f"{type(module).__qualname__} keeps its kind"
        elif ours is not None:
            adopt(module, ours)
        elif type(module) in EVENLY_OF:
            left[name] = f"the forward of {type(module).__name__} was replaced"
        elif type(module) is BatchNormAct2d and switch is not None:
            left[name] = "BatchNormAct2d keeps its kind"
        elif walk.is_norm(module) and type(module) not in OURS:
            left[name] = _why_foreign(module)
        if switch is not None:
            switch(module)
    fused = {block for block in model.modules() if fusing.fused_from(block) is not None}
    for block in fused:
        fusing.unfuse(block)
    for name, block in walk.blocks(model):
        try:
            if drop_bias:
                redundant.drop(block, model)
            if fuse or block in fused:
                fusing.fuse(block)
        except Unreadable as reason:
            left[name] = str(reason)
    _warn_of("convert", left)
    return model


def revert(model: Model) -> Model:
    """Turn evenly's norms into torch.nn's, in place; what `convert` did is undone.

    Fused blocks get their own class back, and switched norms their kind. A layer that computes
    what torch.nn has no layer for (an activation of its own, ghost batches, any rank) is left
    alone, and a warning names it. Running statistics take the type of the weight, because torch's
    half-precision layers expect that.

    Args:
        model: any module; a norm by itself too.

    Returns:
        ``model`` itself.

    Example:
        >>> from torch import nn
        >>> layer = nn.BatchNorm2d(8)
        >>> type(revert(convert(layer))) is nn.BatchNorm2d
        True
    """
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        fusing.unfuse(module)
        kinds.restore(module)
        if type(module) not in OURS:
            continue
        changed = beyond_torch(module)
        if changed:
            left[name] = ", ".join(changed)
        else:
            back_to_torch(module)
    _warn_of("revert", left)
    return model


def _why_foreign(module: nn.Module) -> str:
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: call it once first"
    return f"{type(module).__module__}.{type(module).__qualname__}, not torch.nn's own class"


def _warn_of(verb: str, left: dict[str, str]) -> None:
    if left:
        named = [f"{name or 'the model'} ({reason})" for name, reason in left.items()]
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        warnings.warn(f"evenly.{verb} left as they are: {', '.join(named[:8])}{more}.", stacklevel=3)
