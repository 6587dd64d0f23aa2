"""Per-layer distributions while a training loop of the user's runs.

Every so many training forwards of the model, each norm's input and output are summed up on a
regular sample of their elements: all channels, some samples, some places. Nothing is read back
before the forward has ended, then everything at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from evenly.tools import walk
from evenly.tools.history import QUANTILES, History, Record

_ELEMENTS = 4096  # of a tensor that are looked at
_BINS = 32
_WIDTH = 4.0  # standard deviations on either side that the histogram spans
_SUMMARY = 4 + len(QUANTILES)


class watch:  # noqa: N801  # read as a verb, like torch.no_grad
    """Record what the norms of a model see and give, while it trains.

    Args:
        model: any model; its own training loop runs inside the ``with`` block.
        every: look at each so-manieth training forward of the model.

    Returns:
        On entering, the `History` that fills; it stays valid after the block.

    Raises:
        ValueError: ``every`` is less than 1, or the model has no norm.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> with watch(model, every=2) as history:
        ...     for _ in range(4):
        ...         _ = model(torch.randn(16, 3))
        >>> [(record.step, record.layer, record.side) for record in history.records]
        [(0, '1', 'input'), (0, '1', 'output'), (2, '1', 'input'), (2, '1', 'output')]
    """

    def __init__(self, model: nn.Module, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps and must be at least 1, got {every}.")
        self._model, self._every = model, every
        self._norms = dict(walk.norms(model))
        if not self._norms:
            raise ValueError("the model has no norm to watch.")
        self._handles: list[Any] = []
        self._recorder = Recorder()
        self._step = -1
        self._looking = False

    def __enter__(self) -> History:
        """Put hooks on the model and its norms."""
        self._handles = [
            self._model.register_forward_pre_hook(self._before),
            self._model.register_forward_hook(self._after),
        ]
        return self.attach()

    def __exit__(self, *exception: object) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def attach(self) -> History:
        """Put hooks on the norms alone; whoever knows when a step is calls `begin` and `end`."""
        # First in line: where the norm is the whole model, it is seen before the step ends.
        self._handles += [n.register_forward_hook(self._look(name), prepend=True) for name, n in self._norms.items()]
        return self._recorder.history

    def begin(self) -> None:
        """A training step begins."""
        self._step += 1
        self._looking = self._step % self._every == 0
        self._recorder.forget()

    def end(self) -> None:
        """It has ended: what was seen becomes records."""
        if self._looking:
            self._looking = False
            self._recorder.flush(self._step)

    def _before(self, model: nn.Module, args: Any) -> None:
        if model.training:
            self.begin()

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        self.end()

    def _look(self, name: str) -> Callable[..., None]:
        def look(norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._looking and args and isinstance(output, Tensor):
                self._recorder.look(name, args[0], output, channel_of(norm, output))

        return look


def channel_of(norm: nn.Module, x: Tensor) -> int:
    """The axis whose elements a norm scales one by one."""
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return x.ndim - 1
    return int(getattr(norm, "channel", 1)) % x.ndim


class Recorder:
    """Gathers summaries on the device, and hands them to a history when a step is over."""

    def __init__(self) -> None:
        self.history = History()
        self._pending: list[tuple[str, str, Tensor]] = []
        self._means: dict[tuple[str, str], Tensor] = {}

    def look(self, layer: str, x: Tensor, y: Tensor, channel: int) -> None:
        """Sum up a norm's input and output; kept on their device."""
        with torch.no_grad():
            for side, t in (("input", x), ("output", y)):
                if t.numel() and t.is_floating_point():
                    self._pending.append((layer, side, self._summary((layer, side), _sample(t.detach(), channel))))

    def _summary(self, place: tuple[str, str], values_cs: Tensor) -> Tensor:
        """Mean, std, dead share, drift, quantiles and histogram in one vector.

        Args:
            place: layer and side; drift is measured against its first look.
            values_cs: shape ``(channels, samples)``, float32.
        """
        ordered = values_cs.flatten().sort().values
        std, mean = torch.std_mean(ordered, correction=0)
        means_c = values_cs.mean(1)
        first = self._means.setdefault(place, means_c)
        drift = (means_c - first).abs().mean() / (std + 1e-12) if first.shape == means_c.shape else mean.new_tensor(0)
        dead = (values_cs.amax(1) <= 0).float().mean()
        at, borders = _constants(len(ordered), ordered.device)
        below = torch.searchsorted(ordered, mean + std * borders)
        ends = below.new_tensor([0]), below, below.new_tensor([len(ordered)])
        return torch.cat((torch.stack((mean, std, dead, drift)), ordered[at], torch.cat(ends).diff().float()))

    def forget(self) -> None:
        """Drop what a forward left that did not end."""
        self._pending.clear()

    def flush(self, step: int) -> None:
        """Read everything back at once, as records of this step."""
        if not self._pending:
            return
        for (layer, side, _), row in zip(self._pending, _read([s for _, _, s in self._pending]), strict=True):
            mean, std, dead, drift = row[:4]
            edges = tuple(mean + _WIDTH * std * (2 * i / _BINS - 1) for i in range(_BINS + 1))
            counts = tuple(int(n) for n in row[_SUMMARY:])
            record = Record(step, layer, side, mean, std, dead, drift, tuple(row[4:_SUMMARY]), edges, counts)
            self.history.records.append(record)
        self._pending.clear()


@cache
def _constants(number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the quantiles of so many ordered values stand, and the inner borders of the bins."""
    at = torch.tensor([round(q * (number - 1)) for q in QUANTILES], device=device)
    return at, torch.tensor([_WIDTH * (2 * i / _BINS - 1) for i in range(1, _BINS)], device=device)


def _read(summaries: list[Tensor]) -> list[list[float]]:
    """The vectors as numbers, by one message from each device."""
    if len({s.device for s in summaries}) == 1:
        return torch.stack(summaries).cpu().tolist()
    return [s.cpu().tolist() for s in summaries]


def _sample(x: Tensor, channel: int) -> Tensor:
    """At most so many elements, as ``(channels, samples)`` in float32: all channels, a grid of the rest."""
    if x.ndim == 1:
        return x.float()[:, None]
    x = x.movedim(channel, 0)
    channels = x.shape[0]
    for axis in range(x.ndim - 1, 0, -1):
        excess = x.numel() // max(_ELEMENTS, 8 * channels)
        if excess > 1:
            # A later axis has the places, an earlier one the samples: thin out places first.
            step = min(excess, max(x.shape[axis] // 4, 1)) if axis > 1 else excess
            x = x[(slice(None),) * axis + (slice(None, None, max(step, 1)),)]
    return x.reshape(channels, -1).float()
