"""Which class of ours stands for which of torch.nn's, and the way back."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.nn import batchnorm, instancenorm, modules
from evenly.nn.tracked import Tracked, give_back
from evenly.tools import norm_act
from evenly.tools.follow import pristine

TORCH_OF: dict[type[nn.Module], type[nn.Module]] = {
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
EVENLY_OF = {torchs: ours for ours, torchs in TORCH_OF.items()}
OURS = (*TORCH_OF, batchnorm.BatchNorm, norm_act.BatchNormAct2d)
# Extras of the constructor that show as a parameter that is None, or that only start a parameter.
_NOT_SETTINGS = {"bias", "scale", "weight_init", "bias_init"}


def evenly_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of ours for a layer of torch.nn's or timm's; None for any other, and where its forward was replaced."""
    cls = type(module)
    if cls is norm_act.of_timm():
        return norm_act.BatchNormAct2d
    return EVENLY_OF.get(cls) if cls in EVENLY_OF and pristine(cls) else None


def origin_of(module: nn.Module) -> type[nn.Module]:
    """The class that a layer of ours stands for."""
    timms = norm_act.of_timm() if type(module) is norm_act.BatchNormAct2d else None
    return timms or TORCH_OF[type(module)]


def beyond_torch(module: nn.Module) -> list[str]:
    """What a layer of ours does that torch.nn has no layer for, as ``name=value``; empty: it has a counterpart."""
    own = type(module)
    found = [f"{e}={getattr(module, e)!r}" for e, default in extras(own).items() if getattr(module, e) != default]
    if own is norm_act.BatchNormAct2d and norm_act.of_timm() is None:
        return ["timm is not imported"]
    return [*found, "any rank"] if own is batchnorm.BatchNorm else found


def back_to_torch(module: nn.Module) -> None:
    """Give a layer of ours torch.nn's class; its statistics take the weight's type, as torch expects them."""
    if isinstance(module, Tracked):
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dtype in (torch.float16, torch.bfloat16):
            for name in ("running_mean", "running_var"):
                buffer = module._buffers[name]
                module._buffers[name] = None if buffer is None else buffer.to(weight.dtype)
    give_back(module, origin_of(module), tuple(extras(type(module))))


def extras(ours: type[nn.Module]) -> dict[str, Any]:
    """What a class of ours takes beyond torch's, and the defaults under which it computes the same."""
    constructor: Any = batchnorm.BatchNorm.__init__ if issubclass(ours, _BatchNorm) else ours.__init__
    names = [n for n, p in signature(constructor).parameters.items() if p.kind is Parameter.KEYWORD_ONLY]
    if issubclass(ours, Tracked):
        names.append("frozen")
    if ours is batchnorm.SyncBatchNorm:
        names.remove("process_group")  # torch's has it too
    return {name: getattr(ours, name) for name in names if name not in _NOT_SETTINGS}
