"""``SyncBatchNorm.convert_sync_batchnorm``, by the name and arguments that torch.nn's has."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenly.nn import check
from evenly.nn.tracked import adopt

Model = TypeVar("Model", bound=nn.Module)
_TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FromBatchNorms:
    """What `evenly.SyncBatchNorm` has for whole models (a mixin)."""

    @classmethod
    def convert_sync_batchnorm(cls, module: Model, process_group: dist.ProcessGroup | str | None = None) -> Model:
        """Let every batch norm of a model share its statistics with other processes.

        As torch.nn.SyncBatchNorm's, but in place: parameters, hooks, sharing and every extra of
        ours (activation, frozen statistics) stay. Other people's subclasses are left, and a warning
        names them.

        Args:
            module: a model, or a norm.
            process_group: the processes that share statistics; None for all.

        Returns:
            ``module``.

        Raises:
            ValueError: a layer has ghost batches, which do not go with shared statistics; nothing
                is changed then.

        Example:
            >>> import evenly
            >>> from torch import nn
            >>> model = evenly.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
            >>> type(model[1]) is evenly.SyncBatchNorm
            True
        """
        found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
        ours = {name: layer for name, layer in found.items() if type(layer) in _TORCHS or _is_ours(layer)}
        for layer in ours.values():
            check.check_sync(True, getattr(layer, "ghosts", 1))
        for layer in ours.values():
            converted: Any = adopt(layer, cls)  # type: ignore[arg-type]  # mixed into a layer's class
            converted.sync, converted.process_group = True, process_group
        left = [f"{name or 'the module'} ({type(m).__name__})" for name, m in found.items() if name not in ours]
        if left:
            warnings.warn(f"convert_sync_batchnorm left as they are: {', '.join(left)}.", stacklevel=2)
        return module


def _is_ours(layer: nn.Module) -> bool:
    return type(layer).__module__ == "evenly.nn.batchnorm"
