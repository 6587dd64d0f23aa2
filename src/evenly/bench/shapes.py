"""What is measured: the norms of real networks, each with how often it occurs in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from evenly.core.activation import ActivationName

Norm = Literal["batch", "group", "instance", "layer", "rms"]
Layout = Literal["first", "last"]


@dataclass(frozen=True)
class Case:
    """One norm, with the activation that follows it, on input of one shape.

    Args:
        norm: which norm.
        shape: of the input, ``(N, C, *)``; the last axis is the row of layer and RMS norm.
        times: how often it occurs in one pass of the network.
        activation: what follows, or None.
        residual: whether a residual is added before the activation.
        dtype: of input and output; weight and bias are float32.
        layout: channels ``"first"`` or ``"last"`` in memory.
        groups: of group norm.
    """

    norm: Norm
    shape: tuple[int, ...]
    times: int = 1
    activation: ActivationName | None = "relu"
    residual: bool = False
    dtype: str = "float32"
    layout: Layout = "first"
    groups: int = 32

    @property
    def bytes(self) -> int:
        """Size of the input."""
        return prod(self.shape) * int(getattr(torch, self.dtype).itemsize)

    @property
    def channels(self) -> int:
        """Length of weight and bias."""
        return self.shape[-1] if self.norm in ("layer", "rms") else self.shape[1]

    @property
    def label(self) -> str:
        """``32×64×56×56 +residual``, as tables have it."""
        return "×".join(map(str, self.shape)) + (" +residual" if self.residual else "")

    def tensor(self, generator: torch.Generator, mean: float = 0.0) -> Tensor:
        """Normal numbers of this shape, type and layout, with standard deviation 1."""
        x = torch.empty(self.shape)
        if self.layout == "last" and x.ndim in (4, 5):
            x = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        return x.normal_(mean, 1.0, generator=generator).to(getattr(torch, self.dtype))


def cases(
    name: str,
    *,
    batch: int | None = None,
    residual: bool = False,
    dtype: str = "float32",
    layout: Layout = "first",
) -> list[Case]:
    """The cases of a list.

    Args:
        name: a key of `LISTS`.
        batch: samples, in place of the list's own number; only for lists of networks.
        residual: adds the residual where the network has one (``"resnet50"``), else everywhere.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"float64"``.
        layout: ``"last"`` for channels last in memory.

    Raises:
        ValueError: the list is unknown, or does not take ``batch``.
    """
    if name not in LISTS:
        raise ValueError(f"unknown list of shapes {name!r}; known are {', '.join(LISTS)}.")
    make, samples = LISTS[name]
    if batch is not None and samples is None:
        raise ValueError(f"the shapes of {name!r} are fixed; batch={batch} goes with {', '.join(_networks())}.")
    found = list(make(batch or samples or 0))
    if residual:
        found = _with_residual(name, found)
    if layout == "last":
        found = [case for case in found if len(case.shape) in (4, 5)]
    return [replace(case, dtype=dtype, layout=layout) for case in found]


def _with_residual(name: str, found: list[Case]) -> list[Case]:
    if name != "resnet50":
        return [replace(case, residual=True) for case in found]
    # The last norm of every bottleneck; the remaining ones of that shape stand in shortcuts.
    ends = {(256, 56): 3, (512, 28): 4, (1024, 14): 6, (2048, 7): 3}
    return [
        replace(case, residual=True, times=ends[case.shape[1], case.shape[2]])
        for case in found
        if (case.shape[1], case.shape[2]) in ends
    ]


def _images(rows: str, activation: ActivationName = "relu") -> Callable[[int], Iterable[Case]]:
    """Cases from words ``channels@size`` or ``channels@size*times``; sizes of volumes end in ``^3``."""

    def make(samples: int) -> Iterable[Case]:
        for word in rows.split():
            channels, _, rest = word.partition("@")
            size, _, times = rest.partition("*")
            axes = (int(size[:-2]),) * 3 if size.endswith("^3") else (int(size),) * 2
            yield Case("batch", (samples, int(channels), *axes), int(times or 1), activation)

    return make


def _fixed(shapes: Iterable[tuple[int, ...]]) -> Callable[[int], Iterable[Case]]:
    return lambda samples: [Case("batch", shape) for shape in shapes]


def _rows(samples: int) -> Iterable[Case]:
    shapes = [(16384, 768), (16384, 1024), (4096, 4096), (8192, 8192), (2048, 16384), (6272, 1024), (100352, 96)]
    return [Case(norm, shape, activation=None) for norm in ("layer", "rms") for shape in shapes]


def _group(samples: int) -> Iterable[Case]:
    sizes = [(64, 320), (64, 640), (32, 640), (32, 1280), (16, 1280), (16, 2560)]
    for channels_size in sizes:
        size, channels = channels_size
        yield Case("group", (samples, channels, size, size), activation="silu")
    yield Case("instance", (samples, 64, 64, 64))
    yield Case("instance", (samples, 256, 32, 32))


LISTS: dict[str, tuple[Callable[[int], Iterable[Case]], int | None]] = {
    "resnet50": (
        _images("64@112 64@56*6 256@56*4 128@56 128@28*7 512@28*5 256@28 256@14*11 1024@14*7 512@14 512@7*5 2048@7*4"),
        32,
    ),
    "mobilenetv2": (
        _images(
            "32@112*2 16@112 96@112 96@56 24@56*2 144@56*3 144@28 32@28*3 192@28*5 192@14 64@14*4 384@14*8 96@14*3 "
            "576@14*5 576@7 160@7*3 960@7*6 320@7 1280@7",
            "relu6",
        ),
        32,
    ),
    "unet3d": (_images("32@128^3 64@64^3 128@32^3 256@16^3 320@8^3 320@4^3", "leaky_relu"), 2),
    "cifar": (_images("64@32 128@16 256@8 512@4"), 128),
    "dense": (_fixed([(128, 2048), (2, 8192), (3136, 256), (4096, 512)]), None),
    "small": (_fixed([(1, 16, 8, 8), (8, 64, 8, 8), (20, 3, 16, 16), (32, 64, 14, 14), (5, 100), (60, 100)]), None),
    "huge": (_fixed([(256, 64, 112, 112)]), None),
    "rows": (_rows, None),
    "group": (_group, 8),
}
"""Name → function from the number of samples to the cases, and the usual number (None: fixed shapes)."""


def _networks() -> list[str]:
    return [name for name, (_, samples) in LISTS.items() if samples is not None]
