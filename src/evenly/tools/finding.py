"""What a diagnosis states: findings, trials, and both together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch import Tensor

from evenly.tools import files
from evenly.tools.checkpoint import Checkpoint
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
        lines = [f"{self.level:<{_COLUMN}}{self.rule}" + (f": {listed(self.layers)}" if self.layers else "")]
        texts = {"evidence": self.evidence, "so": self.consequence, "remedy": self.remedy}
        return "\n".join(lines + [_wrapped(f"  {label:<{_COLUMN - 2}}", text) for label, text in texts.items()])


@dataclass(frozen=True)
class Trial:
    """One remedy tried on a copy, with what it restores.

    Args:
        name: what was done.
        score: on held-out batches.
        restored: how much of the gap came back, in the score's unit.
        layers: the layers it changes; empty for all, or none.
        changes: what it writes, by key of the state_dict; empty where nothing is to be written.
        command: how to do it in code.
    """

    name: str
    score: float
    restored: float
    command: str
    layers: tuple[str, ...] = ()
    changes: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


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
    """

    score: str
    unit: str
    training: float
    evaluation: float
    lost: float
    unlike: bool


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


@dataclass
class Diagnosis:
    """What was found, what was tried, and the file mended by the best of it.

    Args:
        source: the file or model.
        command: how to repeat it.
        findings: the worst first.
        trials: the best first.
        gap: training form against evaluation form; None from a file alone.
        layers: in the order of calls.
        channels: distributions of the culprit's channels.
        checkpoint: the file that `fix` mends.
        state: what `fix` writes where there is no file.
        keys: the file's key for each key of the model's.
    """

    source: str
    command: str
    findings: list[Finding] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    gap: Gap | None = None
    layers: list[LayerView] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def worst(self) -> str | None:
        """The highest level found, or None."""
        return max((f.level for f in self.findings), key=LEVELS.index, default=None)

    @property
    def best(self) -> Trial | None:
        """The best trial that a file can hold, if anything is lost and it restores some of that."""
        if self.gap is None or not self.gap.unlike:
            return None
        return next((t for t in self.trials if t.changes and t.restored > 0), None)

    def exit_status(self, *, strict: bool = False) -> int:
        """For scripts: 1 after an error (``strict``: after a warning), else 0."""
        return int(self.worst == "error" or (strict and self.worst == "warning"))

    def table(self) -> str:
        """Everything as plain text."""
        counts = {level: sum(f.level == level for f in self.findings) for level in reversed(LEVELS)}
        said = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items() if n)
        blocks = [f"{visible(self.source)}: {said or 'nothing found'}", *map(str, self.findings)]
        if self.gap is not None:
            blocks.append(_gap_text(self.gap))
        if self.trials:
            blocks.append(_trial_text(self.trials))
        return "\n\n".join(blocks)

    def to_dict(self) -> dict[str, Any]:
        """Findings, trials and gap as plain values; what is not finite is None."""
        trials = [
            {k: v for k, v in vars(t).items() if k != "changes"} | {"writable": bool(t.changes)} for t in self.trials
        ]
        values = {
            "source": self.source, "command": self.command, "worst": self.worst,
            "findings": [asdict(f) for f in self.findings], "trials": trials,
            "gap": None if self.gap is None else asdict(self.gap), "layers": [asdict(v) for v in self.layers],
        }  # fmt: skip
        finite: dict[str, Any] = _finite(values)
        return finite

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        files.write(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", inputs=self._read())

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: before, after, culprit, its distributions, the command."""
        from evenly.tools.report import card

        files.write(path, card(self), inputs=self._read())

    def _read(self) -> list[Path]:
        return [] if self.checkpoint is None else [self.checkpoint.path, *self.checkpoint.parts]

    def fix(self, path: str | Path) -> Trial:
        """Write a checkpoint with the best trial's changes: the same format and keys, a new file.

        Args:
            path: the new file. Without an input file, the model's state_dict is written.

        Returns:
            The trial that was written.

        Raises:
            ValueError: no trial restores anything, or ``path`` is the input file.
        """
        if self.best is None:
            raise ValueError("no trial that a file can hold restores anything, so there is nothing to write.")
        changes = {self.keys.get(key, key): value for key, value in self.best.changes.items()}
        if self.checkpoint is not None:
            self.checkpoint.write(path, changes)
        elif str(path).endswith(".safetensors"):
            raise ValueError("without an input file a state_dict is written by torch.save; name the file *.pt.")
        else:
            with files.replacing(path) as file:
                torch.save({**self.state, **changes}, file)
        return self.best


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise in the order found."""
    return sorted(findings, key=lambda f: -LEVELS.index(f.level))


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def listed(layers: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more."""
    shown = ", ".join(visible(name) or "(model)" for name in layers[:most])
    return shown + (f" and {len(layers) - most} more" if len(layers) > most else "")


def _wrapped(label: str, text: str) -> str:
    return fill(line(text), 100, initial_indent=label, subsequent_indent=" " * _COLUMN)


def _gap_text(gap: Gap) -> str:
    verdict = f"{gap.lost:.1f} {gap.unit} lost" if gap.unlike else "no more apart than chance explains"
    return (
        f"{gap.score}, batch statistics:   {gap.training:8.2f}\n"
        f"{gap.score}, running statistics: {gap.evaluation:8.2f}   {verdict}"
    )


def _trial_text(trials: Sequence[Trial]) -> str:
    names = [visible(t.name) for t in trials]
    width = max(map(len, names))
    rows = [f"{'trial':<{width}}  {'score':>8}  {'restored':>8}"]
    rows += [f"{n:<{width}}  {t.score:8.2f}  {t.restored:8.2f}" for n, t in zip(names, trials, strict=True)]
    return "\n".join(rows)
