"""What a diagnosis states: findings and trials, the gap between both forms, and what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import fill

import torch
from torch import Tensor

from evenly.tools.labels import Values
from evenly.tools.names import line, visible

LEVELS = ("note", "warning", "error")
_COLUMN = 11


@dataclass(frozen=True)
class Finding:
    """One fact that a diagnosis states.

    Args:
        rule: its name, such as ``"double-update"``.
        level: ``"error"`` (evaluation is wrong), ``"warning"`` (it may be) or ``"note"``.
        layers: the layers concerned; empty for the model as a whole.
        evidence: what was seen, in numbers.
        consequence: what that does.
        remedy: what to do about it.
    """

    rule: str
    level: str
    layers: tuple[str, ...]
    evidence: str
    consequence: str
    remedy: str

    def __str__(self) -> str:
        return self.text(100)

    def text(self, width: int) -> str:
        """The finding in lines of at most ``width`` characters."""
        lines = [f"{self.level:<{_COLUMN}}{self.rule}" + (f": {listed(self.layers)}" if self.layers else "")]
        texts = {"evidence": self.evidence, "so": self.consequence, "remedy": self.remedy}
        for label, text in texts.items():
            lines.append(
                fill(line(text), width, initial_indent=f"  {label:<{_COLUMN - 2}}", subsequent_indent=" " * _COLUMN)
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Trial:
    """One remedy tried, with what it restores.

    Args:
        name: what was done.
        command: how to do it in code.
        score: on batches that it was not measured on.
        restored: how much better than the model's own evaluation that is, in the score's unit.
        layers: the layers it changes; empty for all, or none.
        blend: the measured statistics' share.
        gentle: how much it changes, 0 to 1: the share of layers times the blend.
        recipe: how a file is mended so (``"recalibrate"``); empty where no file can hold it.
        changes: what was written, by key of the state_dict, once it was.
        values: what each sample scored.
    """

    name: str
    command: str
    score: float = math.nan
    restored: float = 0.0
    layers: tuple[str, ...] = ()
    blend: float = 1.0
    gentle: float = 1.0
    recipe: str = ""
    changes: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    values: Values = field(default=Values(torch.zeros(0), torch.zeros(0)), repr=False, compare=False)

    def with_score(self, score: float, restored: float, values: Values) -> Trial:
        """The same with what it scored."""
        return replace(self, score=score, restored=restored, values=values)


@dataclass(frozen=True)
class Gap:
    """Training form against evaluation form, on held-out batches, dropout off in both.

    Args:
        score: ``"accuracy"``, ``"loss"`` or ``"disagreement with training form"``.
        unit: behind the number.
        training: with the statistics of each batch.
        evaluation: with the running statistics.
        lost: how much evaluation is worse.
        unlike: whether more is lost than chance explains.
        samples: it was seen on.
        seconds: it took to see.
        said: how outputs were scored, in words.
        judges: whether the score says which form is better.
    """

    score: str
    unit: str
    training: float
    evaluation: float
    lost: float
    unlike: bool
    samples: int = 0
    seconds: float = 0.0
    said: str = ""
    judges: bool = True


@dataclass(frozen=True)
class LayerView:
    """One layer for the picture.

    Args:
        name: of the layer.
        distance: median over channels of its running statistics' distance from the data, or None.
        mean: range of the running means (least, median, largest).
        std: range of the running standard deviations.
    """

    name: str
    distance: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Channel:
    """The distribution of one channel's input, against its running statistics."""

    layer: str
    channel: int
    edges: tuple[float, ...]
    density: tuple[float, ...]
    mean: float
    std: float
    running_mean: float
    running_std: float


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise in the order found."""
    return sorted(findings, key=lambda f: -LEVELS.index(f.level))


def listed(layers: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more."""
    shown = ", ".join(visible(name) or "(model)" for name in layers[:most])
    return shown + (f" and {len(layers) - most} more" if len(layers) > most else "")
