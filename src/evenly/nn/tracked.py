"""What every layer with running statistics does: keep them precise, whole and, on request, frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Tracked(nn.Module):
    """Running statistics that stay float32, count what they skip, and can be frozen (a mixin).

    Attributes:
        frozen: whether the running statistics are used and left alone under ``train()``, too.
            Weight and bias stay trainable. Set it directly, or by `evenly.freeze`.
    """

    frozen: bool = False
    _buffers: dict[str, Tensor | None]

    def _complete(self) -> None:
        """Give an instance that torch.nn, or an older version, made what ours has beside."""
        if "skipped_batches" not in self._buffers:
            counter = self._buffers.get("num_batches_tracked")
            skipped = None if counter is None else torch.zeros_like(counter)
            self.register_buffer("skipped_batches", skipped, persistent=False)
        self._widen_statistics(self._buffers.copy())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """As torch's, but half precision leaves the running statistics in float32."""
        before = self._buffers.copy()
        super()._apply(fn, recurse)
        self._widen_statistics(before)
        return self

    def _widen_statistics(self, before: dict[str, Tensor | None]) -> None:
        """Put back ``before``'s values where a buffer would be narrower than float32."""
        for name, now in self._buffers.items():
            if now is not None and now.dtype in (torch.float16, torch.bfloat16):
                old = before.get(name)
                self._buffers[name] = (now if old is None else old).to(now.device, torch.float32)


def adopt(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Make a layer of torch.nn one of ours, in place; it keeps everything it has.

    Args:
        module: an instance of torch.nn's class of the same name.
        cls: evenly's class.

    Returns:
        ``module``, now a ``cls`` with every extra at its default.

    Example:
        >>> import torch, evenly
        >>> layer = adopt(torch.nn.BatchNorm2d(3), evenly.BatchNorm2d)
        >>> type(layer).__module__, layer.average
        ('evenly.nn.batchnorm', 'ema')
    """
    module.__class__ = cls
    if isinstance(module, Tracked):
        module._complete()
    return module
