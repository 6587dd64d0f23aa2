"""torch.nn's norms to evenly's and back, in place.

Only ``module.__class__`` changes: parameters, buffers, hooks, sharing, device, type and mode are
not touched, because nothing is rebuilt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.nn import batchnorm, instancenorm, modules
from evenly.tools import kinds, walk

_TORCH_OF: dict[type[nn.Module], type[nn.Module]] = {
    batchnorm.BatchNorm1d: nn.BatchNorm1d,
    batchnorm.BatchNorm2d: nn.BatchNorm2d,
    batchnorm.BatchNorm3d: nn.BatchNorm3d,
    batchnorm.SyncBatchNorm: nn.SyncBatchNorm,
    instancenorm.InstanceNorm1d: nn.InstanceNorm1d,
    instancenorm.InstanceNorm2d: nn.InstanceNorm2d,
    instancenorm.InstanceNorm3d: nn.InstanceNorm3d,
    modules.GroupNorm: nn.GroupNorm,
    modules.LayerNorm: nn.LayerNorm,
    modules.RMSNorm: nn.RMSNorm,
}
_EVENLY_OF = {torchs: ours for ours, torchs in _TORCH_OF.items()}
_STRUCTURE = {"bias", "scale"}  # extras of the constructor that show as a parameter that is None


def convert(model: nn.Module, *, norm: str | None = None) -> nn.Module:
    """Turn torch.nn's norms into evenly's, in place.

    Every layer computes what it computed before; parameters, buffers, state_dict keys, hooks,
    sharing, device, type, ``training`` and ``requires_grad`` stay. Layers of a class of
    somebody else (parametrized ones too) are left alone, and a warning names them.

    Args:
        model: any module; a norm by itself too.
        norm: None keeps each norm's kind. Else every batch norm becomes ``"group:8"`` (groups),
            ``"group"`` (32 groups, or the largest divisor of the channels below), ``"layer"`` (one
            group), ``"instance"`` (a group for each channel), ``"ghost:8"`` (parts of the batch) or
            ``"sync"`` (statistics shared by all processes; `revert` gives the layers back as they were).

    Returns:
        ``model`` itself.

    Raises:
        ValueError: ``norm`` is unknown, or does not fit a layer; nothing is changed then.

    Example:
        >>> from torch import nn
        >>> convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))[1]
        BatchNorm2d(8, eps=1e-05, momentum=0.1, ...)
    """
    switch = None if norm is None else kinds.switch(norm, model)
    left: list[str] = []
    for name, module in model.named_modules():
        if type(module) in _EVENLY_OF:
            _adopt(module, _EVENLY_OF[type(module)])
        elif walk.is_norm(module) and type(module) not in _TORCH_OF and type(module) is not batchnorm.BatchNorm:
            left.append(f"{name or 'the model'} ({_why_foreign(module)})")
        if switch is not None:
            switch(module)
    _warn_of("convert", left)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Turn evenly's norms into torch.nn's, in place; what `convert` did is undone.

    A layer that computes what torch.nn has no layer for (a fused activation, ghost batches, any
    rank) is left alone, and a warning names it. Running statistics take the type of the weight,
    because torch's half-precision layers expect that.

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
    left: list[str] = []
    for name, module in model.named_modules():
        kinds.restore(module)
        torchs = _TORCH_OF.get(type(module))
        extras = _extras(type(module)) if torchs or type(module) is batchnorm.BatchNorm else {}
        changed = [f"{e}={getattr(module, e)!r}" for e, default in extras.items() if getattr(module, e) != default]
        if type(module) is batchnorm.BatchNorm:
            changed.append("any rank")
        if changed:
            left.append(f"{name or 'the model'} ({', '.join(changed)})")
        elif torchs is not None:
            _give_back(module, torchs, extras)
    _warn_of("revert", left)
    return model


def _adopt(module: nn.Module, ours: type[nn.Module]) -> None:
    """Make a torch layer ours: the class, the extras at their defaults, the counter of skipped batches."""
    module.__class__ = ours
    for name, default in _extras(ours).items():
        if not hasattr(module, name):
            setattr(module, name, default)
    if isinstance(module, batchnorm.BatchNorm):
        counter = module.num_batches_tracked
        skipped = None if counter is None else torch.zeros_like(counter)
        module.register_buffer("skipped_batches", skipped, persistent=False)
        _statistics_to(module, torch.float32)


def _give_back(module: nn.Module, torchs: type[nn.Module], extras: dict[str, Any]) -> None:
    for name in extras:
        vars(module).pop(name, None)
    if isinstance(module, batchnorm.BatchNorm):
        del module.skipped_batches
        if module.weight is not None:
            _statistics_to(module, module.weight.dtype)
    module.__class__ = torchs


def _statistics_to(module: _BatchNorm, dtype: torch.dtype) -> None:
    """Between half precision (torch's layers want the weight's type) and float32 (ours)."""
    half = (torch.float16, torch.bfloat16)
    for name in ("running_mean", "running_var"):
        buffer = module._buffers[name]
        if buffer is not None and (buffer.dtype in half) != (dtype in half):
            module._buffers[name] = buffer.to(dtype)


def _extras(ours: type[nn.Module]) -> dict[str, Any]:
    """What a class of ours takes beyond torch's, and the defaults under which it computes the same."""
    if ours is batchnorm.SyncBatchNorm:  # torch's has a process group, too, and is always synchronised
        extras = _extras(batchnorm.BatchNorm)
        return {**{name: extras[name] for name in extras if name != "process_group"}, "sync": True}
    constructor: Callable[..., Any] = ours.__init__
    return {
        name: p.default
        for name, p in signature(constructor).parameters.items()
        if p.kind is Parameter.KEYWORD_ONLY and name not in _STRUCTURE
    }


def _why_foreign(module: nn.Module) -> str:
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: call it once first"
    return f"{type(module).__module__}.{type(module).__qualname__}, not torch.nn's own class"


def _warn_of(verb: str, left: list[str]) -> None:
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        warnings.warn(f"evenly.{verb} left as they are: {', '.join(left[:8])}{more}.", stacklevel=3)
