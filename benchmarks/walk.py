"""The way a call takes through evenly's files: how many Python calls, which files, how wide the widest call is.

    python benchmarks/walk.py

For each situation the second call is followed, forward and backward, with Python's own profiler. The figures
are a report, not a goal: a file that is visited again on the way down, or a call of many arguments, is a place
to look. What counts is the time against torch's operators (``benchmarks/call.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import evenly

HOME = str(Path(evenly.__file__).parent)
SHAPE = (8, 16, 14, 14)


@dataclass
class Walk:
    """What was seen of one call: functions of evenly's in the order entered, with file, depth and arguments."""

    stations: list[tuple[str, str, int]] = field(default_factory=list)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Python's profiler hook."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HOME) and not code.co_name.startswith("<"):
            arguments = code.co_argcount + code.co_kwonlyargcount
            self.stations.append((Path(code.co_filename).relative_to(HOME).as_posix(), code.co_name, arguments))

    @property
    def row(self) -> tuple[int, int, int, str]:
        """Calls, files, width of the widest internal call, and its name."""
        inner = [s for s in self.stations if s[1] not in ("__init__", "apply", "forward") or "backends" in s[0]]
        widest = max(inner, key=lambda s: s[2], default=("", "", 0))
        return len(self.stations), len({s[0] for s in self.stations}), widest[2], f"{widest[0]}:{widest[1]}"


def followed(call: Callable[[], Any]) -> tuple[Walk, Any]:
    """The walk of ``call``, and what it returned."""
    walk = Walk()
    sys.setprofile(walk)
    try:
        found = call()
    finally:
        sys.setprofile(None)
    return walk, found


def situations() -> dict[str, tuple[Callable[[Tensor], Tensor], bool]]:
    """A function of the input for each, and whether a gradient is asked for."""
    residual, mask = torch.randn(SHAPE), torch.rand(SHAPE[0], *SHAPE[2:]) > 0.3
    plain, relu = evenly.BatchNorm2d(16), evenly.BatchNorm2d(16, activation="relu")
    inplace = evenly.BatchNorm2d(16, activation="leaky_relu", inplace=True)
    evaluated, uneven = evenly.BatchNorm2d(16, activation="relu").eval(), evenly.BatchNorm2d(16, ghosts=3)
    group, layer = evenly.GroupNorm(4, 16), evenly.LayerNorm(14, activation="gelu")
    return {
        "training": (plain, True),
        "training, ReLU": (relu, True),
        "training, residual, ReLU": (lambda x: relu(x, residual), True),
        "training, mask": (lambda x: relu(x, mask=mask), True),
        "training, inplace": (inplace, True),
        "training, uneven ghosts": (uneven, True),
        "evaluation": (evaluated, False),
        "evaluation, with gradient": (evaluated, True),
        "group norm": (group, True),
        "layer norm, GELU": (layer, True),
    }


def main() -> None:
    """Follow every situation and print a line for each."""
    print(f"{'second call of':28} {'forward':>8} {'files':>6} {'widest':>7}  {'backward':>8} {'files':>6}  widest call")
    for name, (call, needs) in situations().items():
        x = torch.randn(SHAPE, requires_grad=needs)
        call(x)
        forward, y = followed(lambda call=call, x=x: call(x))  # type: ignore[misc]
        calls, files, width, widest = forward.row
        back = ("-", "-")
        if needs:
            walk, _ = followed(lambda y=y, x=x: torch.autograd.grad(y.sum(), x))  # type: ignore[misc]
            back = (str(walk.row[0]), str(walk.row[1]))
        print(f"{name:28} {calls:8} {files:6} {width:7}  {back[0]:>8} {back[1]:>6}  {widest}")


if __name__ == "__main__":
    main()
