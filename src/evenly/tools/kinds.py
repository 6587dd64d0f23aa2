"""From one kind of norm to another, reversibly: to group norm, ghost batches, shared statistics, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from evenly.nn.groupnorm import GroupNorm

_KNOWN = '"group", "group:G", "layer", "instance", "ghost:K", "sync", "frozen", "batch"'


class Origin(NamedTuple):
    """What a layer was before its kind was switched; kept in the layer, so that it travels with it.

    Args:
        cls: its class.
        removed: settings that the new kind does not have, or has at another value.
        added: settings that only the new kind has.
        buffers: its running statistics, if the new kind keeps none.
    """

    cls: type[nn.Module]
    removed: dict[str, Any]
    added: tuple[str, ...]
    buffers: dict[str, Tensor | None]


def switch(norm: str, model: nn.Module) -> Callable[[nn.Module], None]:
    """The function that gives a layer the kind ``norm``, checked against all of ``model``'s layers.

    Raises:
        ValueError: the kind is unknown, or does not fit a layer.
    """
    kind, colon, number = norm.partition(":")
    if colon and not (number.isdecimal() and int(number) > 0 and kind in ("group", "ghost")):
        raise ValueError(f"unknown norm {norm!r}; known are {_KNOWN} with G and K integers from 1 on.")
    match kind:
        case "group" | "layer" | "instance":
            groups = {"layer": 1, "instance": 0}.get(kind, int(number) if colon else None)
            for name, module in model.named_modules():
                if isinstance(module, _BatchNorm):
                    _groups_of(module.num_features, groups, name)
                elif isinstance(module, GroupNorm) and "_origin" in vars(module):
                    _groups_of(module.num_channels, groups, name)
            return partial(_to_group, groups=groups)
        case "ghost" if colon:
            return partial(_to_batch, ghosts=int(number))
        case "sync":
            return partial(_to_batch, sync=True)
        case "frozen":
            return partial(_to_batch, frozen=True)
        case "batch":
            return partial(_to_batch, frozen=False)
    raise ValueError(f"unknown norm {norm!r}; known are {_KNOWN}.")


def restore(module: nn.Module) -> None:
    """Give a layer the kind it had before `switch`; nothing where it was not switched."""
    origin: Origin | None = vars(module).pop("_origin", None)
    if origin is None:
        return
    for name in origin.added:
        del vars(module)[name]
    vars(module).update(origin.removed)
    weight = module.weight
    for name, buffer in origin.buffers.items():
        # The layer may have moved meanwhile.
        module._buffers[name] = buffer if buffer is None or not isinstance(weight, Tensor) else buffer.to(weight.device)
    module.__class__ = origin.cls


def _to_group(module: nn.Module, groups: int | None) -> None:
    restore(module)
    if not _is_ours(module):
        return
    channels = module.num_features
    settings = {"num_groups": _groups_of(channels, groups, ""), "num_channels": channels}
    kept = {"eps", "affine", "activation", "activation_args"}
    ours = vars(module)
    removed = {name: ours.pop(name) for name in _settings(module) if name not in kept}
    origin = Origin(type(module), removed, tuple(settings), dict(module._buffers))
    module._buffers.clear()
    module.__class__ = GroupNorm  # type: ignore[assignment]  # a batch norm no more
    ours.update(settings, _origin=origin)


def _to_batch(module: nn.Module, **settings: Any) -> None:
    """A batch norm by itself, but for ``settings``; where a ``sync`` is not asked for, it ends. Frozen stays frozen."""
    restore(module)
    if not _is_ours(module):
        return
    wanted = {"ghosts": 1, "sync": False, **settings}
    own = vars(module)
    changed = {name: value for name, value in wanted.items() if getattr(module, name) != value}
    removed = {name: own[name] for name in changed if name in own}
    cls = type(module)
    if cls is SyncBatchNorm and not wanted["sync"]:
        module.__class__ = BatchNorm
    if changed:
        own.update(changed, _origin=Origin(cls, removed, tuple(changed), {}))


def _is_ours(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether a layer is exactly a batch norm of ours, and not somebody's subclass of it."""
    return type(module) in (BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm)


def _settings(module: nn.Module) -> list[str]:
    """The names of a layer's own settings: what it has beyond an empty nn.Module."""
    return [name for name in vars(module) if name not in vars(nn.Module())]


def _groups_of(channels: int, groups: int | None, name: str) -> int:
    """How many groups ``channels`` get: the number asked for, one each (0), or 32 at most (None)."""
    if groups is None:
        return max(g for g in range(1, min(channels, 32) + 1) if channels % g == 0)
    groups = groups or channels
    if channels % groups:
        divisors = ", ".join(str(d) for d in range(1, channels + 1) if channels % d == 0)
        raise ValueError(
            f"{name or 'the layer'}: {channels} channels cannot split into {groups} groups; groups must divide "
            f'channels ({divisors}), and norm="group" chooses for each layer.'
        )
    return groups
