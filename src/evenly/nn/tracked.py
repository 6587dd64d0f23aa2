"""What every layer with running statistics does: keep them precise, whole and, on request, frozen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evenly.backends.running import Pending

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_PENDING = ("pending_seen", "pending_count", "pending_mean", "pending_m2")
# Other people's functions that rebuild a layer from torch's attributes, and what to use instead.
_REBUILD = {
    "convert_sync_batchnorm": 'evenly.convert(model, norm="sync")',
    "freeze_batch_norm_2d": "evenly.freeze(model)",
    "convert_splitbn_model": 'evenly.convert(model, norm="ghost:2")',
    "fuse_conv_bn_eval": "an activation behind the layer, as evenly.convert(fuse=True) leaves it",
    "fuse_linear_bn_eval": "an activation behind the layer, as evenly.convert(fuse=True) leaves it",
    "torch.utils.mkldnn": "an activation behind the layer, as evenly.convert(fuse=True) leaves it",
}
_EXTRAS = ("activation", "frozen", "renorm", "ghosts", "accumulate", "average", "unbiased", "single", "channel")
_IN_EVALUATION = ("activation", "channel")  # what shows in evaluation, too


class _Told:
    """A setting that is handed out, unless to a function that would lose what else the layer does."""

    def __init__(self, name: str, extras: tuple[str, ...]) -> None:
        self.name, self.extras = name, extras

    def __get__(self, layer: Any, owner: Any = None) -> Any:
        if layer is None:
            return self
        own = layer.__dict__
        special = self.extras is _EXTRAS or own.get("activation") is not None or own.get("channel", 1) != 1
        if special and not torch.compiler.is_compiling():
            _refuse_rebuilding(layer, self.extras)
        try:
            return own[self.name]
        except KeyError:
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute {self.name!r}") from None

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__[self.name] = value


class Tracked(nn.Module):
    """Running statistics that stay float32, count what they skip, and can be frozen (a mixin).

    Attributes:
        frozen: whether the running statistics are used and left alone under ``train()``, too.
            Weight and bias stay trainable. Set it directly, or by `evenly.freeze`.
        skipped_batches: how many batches were left out of the running statistics because they were
            not finite, 0-d int64; None without statistics. No buffer: it is in no state_dict, and
            each process counts for itself.
    """

    frozen: bool = False
    affine = _Told("affine", _EXTRAS)
    eps = _Told("eps", _IN_EVALUATION)
    _buffers: dict[str, Tensor | None]
    # Asked for by name, never by ``__dict__``, which torch.compile does not guard.
    _skip_counter: Tensor | None = None
    pending_seen: Tensor | None = None
    pending_count: Tensor | None = None
    pending_mean: Tensor | None = None
    pending_m2: Tensor | None = None

    @property
    def skipped_batches(self) -> Tensor | None:
        """How many batches were skipped."""
        mean = self._buffers.get("running_mean")
        return None if mean is None or self._buffers.get("num_batches_tracked") is None else self._skipped(mean)

    @skipped_batches.setter
    def skipped_batches(self, value: Tensor | None) -> None:
        self.__dict__["_skip_counter"] = value

    def _skipped(self, like: Tensor) -> Tensor:
        """The counter of skipped batches, on the device of ``like``; made when first asked for."""
        if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(like):
            return torch.zeros_like(like, dtype=torch.int64).sum()  # of a transform: nobody could read it later
        counter = self._skip_counter
        if counter is None or counter.device != like.device:
            known = counter is not None and not counter.is_meta and not like.is_meta
            zero = torch.zeros((), dtype=torch.int64, device=like.device)
            counter = counter.to(like.device) if known and counter is not None else zero
            self._skip_counter = counter
        return counter

    def _pending(self) -> Pending:
        """Where micro-batches wait for each other: plain attributes, made when first asked for."""
        seen, mean = self._buffers["num_batches_tracked"], self._buffers["running_mean"]
        assert seen is not None and mean is not None
        if self.pending_mean is None or self.pending_mean.device != mean.device:
            self.pending_seen, self.pending_count = torch.zeros_like(seen), torch.zeros_like(mean)
            self.pending_mean, self.pending_m2 = torch.zeros_like(mean), torch.zeros_like(mean)
        every: Any = self.accumulate  # a batch norm's
        made: Any = (self.pending_seen, self.pending_count, self.pending_mean, self.pending_m2)
        return Pending(every, *made)

    def _forget_pending(self) -> None:
        for name in _PENDING:
            self.__dict__.pop(name, None)

    def reset_running_stats(self) -> None:
        """Zero mean, unit variance, no batches seen, none skipped, none pending; nothing where they are frozen."""
        if self.frozen:
            return
        super().reset_running_stats()  # type: ignore[misc]  # a mixin: torch's class comes next
        self._forget_pending()
        counter = self.__dict__.get("_skip_counter")
        if counter is not None:
            counter.zero_()

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch's, but frozen statistics are not replaced, and micro-batches do not wait through evaluation."""
        if name in _STATISTICS and self.frozen and name in self._buffers and "_loads" not in self.__dict__:
            raise RuntimeError(
                f"{name} of a frozen {type(self).__name__} was about to be replaced; "
                "call evenly.unfreeze(model) first, or keep this layer out of what averages or resets statistics."
            )
        if (name == "training" and not value) or (name == "frozen" and value):
            self._forget_pending()
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget_pending()
        self.__dict__["_loads"] = True
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            del self.__dict__["_loads"]

    def _complete(self) -> None:
        """Give an instance that torch.nn, or an older version, made what ours has beside."""
        for name in ("skipped_batches", *_PENDING):  # buffers once
            if name in self._buffers:
                value = self._buffers.pop(name)
                self._non_persistent_buffers_set.discard(name)
                self.__dict__["_skip_counter" if name == "skipped_batches" else name] = value
        mean = self._buffers.get("running_mean")
        if mean is not None and not nn.parameter.is_lazy(mean) and not mean.is_meta:
            self._skipped(mean)
        self._widen_statistics(self._buffers.copy())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """As torch's, but half precision leaves the running statistics in float32."""
        before = self._buffers.copy()
        super()._apply(fn, recurse)
        self._widen_statistics(before)
        self._move_what_waits()
        return self

    def _move_what_waits(self) -> None:
        """Take what is no buffer to where the statistics went; on the meta device it ends."""
        own, mean = self.__dict__, self._buffers.get("running_mean")
        if mean is None:
            return
        for name in ("_skip_counter", *_PENDING):
            value = own.get(name)
            if value is not None and (mean.is_meta or value.is_meta):
                del own[name]
            elif value is not None:
                own[name] = value.to(mean.device, mean.dtype if value.is_floating_point() else value.dtype)

    def _widen_statistics(self, before: dict[str, Tensor | None]) -> None:
        """Put back ``before``'s values where a buffer would be narrower than float32."""
        for name, now in self._buffers.items():
            if now is not None and now.dtype in (torch.float16, torch.bfloat16):
                old = before.get(name)
                self._buffers[name] = (now if old is None else old).to(now.device, torch.float32)


def _refuse_rebuilding(layer: Any, extras: tuple[str, ...]) -> None:
    """Raise where the caller's caller would make another layer of this one, without some of ``extras``."""
    frame = sys._getframe(2)
    name, home = frame.f_code.co_name, frame.f_globals.get("__name__", "")
    instead = _REBUILD.get(name) or _REBUILD.get(home)
    if instead is None:
        return
    extras = _IN_EVALUATION if home in _REBUILD else extras
    lost = [f"{e}={getattr(layer, e)!r}" for e in extras if getattr(layer, e, None) != getattr(type(layer), e, None)]
    if lost:
        raise RuntimeError(
            f"{home if home in _REBUILD else name} would drop {', '.join(lost)} of {type(layer).__name__}; "
            f"use {instead} instead."
        )


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


def give_back(module: nn.Module, cls: type[nn.Module], extras: tuple[str, ...]) -> None:
    """Make a layer of ours one of torch.nn again, in place: what `adopt` did is undone.

    Args:
        module: a layer of ours that computes what a ``cls`` computes.
        cls: torch.nn's class.
        extras: the names of our settings, which fall away.
    """
    for name in (*extras, "weight_init", "bias_init", "frozen", "_skip_counter", *_PENDING):
        vars(module).pop(name, None)
    module.__class__ = cls
