"""A diagnosis as a whole: what was examined, found and tried, as text, page, values and mended file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from evenly.tools import files
from evenly.tools.checkpoint import Checkpoint
from evenly.tools.finding import LEVELS, Channel, Finding, Gap, LayerView, Trial
from evenly.tools.names import line, visible
from evenly.tools.scores import Interval


@dataclass(frozen=True)
class Mended:
    """The file that was written, read back, loaded and scored.

    Args:
        path: the file.
        before: what the model's own evaluation scored on the confirming part.
        after: what it scores with the file's numbers.
        better: the paired difference with its interval.
        groups: the same for each group of the data, where there are groups.
        samples: how many the statistics were measured on.
    """

    path: Path
    before: float
    after: float
    better: Interval
    groups: tuple[Interval, ...]
    samples: int

    def __str__(self) -> str:
        text = (
            f"wrote {self.path}, measured on {self.samples} samples: {self.before:.2f} before, {self.after:.2f} after, "
            f"read back and loaded: {self.better}"
        )
        return text + "".join(f"\n  group {number}: {group}" for number, group in enumerate(self.groups, 1))


@dataclass(repr=False)
class Diagnosis:
    """What was examined, found and tried, and the file mended by the best trial.

    Args:
        source: the file or model.
        command: how to repeat it.
        findings: the worst first.
        trials: the best first.
        gap: training form against evaluation form; None from a file alone, or where both are one.
        layers: in the order of calls.
        channels: distributions of the culprit's channels.
        examined: what was looked at, and what could not be seen, line by line.
        looked: whether any norm with running statistics was looked at.
        chosen: the trial that a file would be mended by.
        confirmed: by how much that is better, on batches that it was neither measured nor chosen on.
        refused: why no file is to be written, or nothing.
        checkpoint: the file that `fix` mends.
        keys: the file's key for each key of the model's.
    """

    source: str
    command: str
    findings: list[Finding] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    gap: Gap | None = None
    layers: list[LayerView] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    examined: list[str] = field(default_factory=list)
    looked: bool = True
    chosen: Trial | None = None
    confirmed: Interval | None = None
    refused: str = ""
    mended: Mended | None = None
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    mend: Callable[[Diagnosis, Path], tuple[Trial, Mended]] | None = field(default=None, repr=False)

    @property
    def worst(self) -> str | None:
        """The highest level found, or None."""
        return max((f.level for f in self.findings), key=LEVELS.index, default=None)

    @property
    def best(self) -> Trial | None:
        """The trial that `fix` writes: chosen, and shown to be better on batches kept for that."""
        return None if self.refused else self.chosen

    def exit_status(self, *, strict: bool = False) -> int:
        """For scripts: 1 after an error (``strict``: after a warning, and where no norm was looked at), else 0."""
        return int(self.worst == "error" or (strict and (self.worst == "warning" or not self.looked)))

    @property
    def headline(self) -> str:
        """Source and verdict in one line; what was not looked at is not called healthy."""
        counts = {level: sum(f.level == level for f in self.findings) for level in reversed(LEVELS)}
        said = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items() if n)
        silent = "nothing found" if self.looked else "no norm that I know was looked at"
        return f"{visible(self.source)}: {said or silent}"

    def table(self, width: int | None = None) -> str:
        """Everything as plain text, at most ``width`` characters wide (default: the terminal's)."""
        width = max(40, width or min(shutil.get_terminal_size((100, 24)).columns, 110))
        seen = "\n".join(fill(line(text), width, subsequent_indent="  ") for text in self.examined)
        blocks = [self.headline, *([seen] if seen else []), *(f.text(width) for f in self.findings)]
        if self.gap is not None:
            blocks.append(_gap_text(self.gap, width))
        if self.trials:
            blocks.append(_trial_text(self.trials))
        if self.chosen is not None and self.confirmed is not None:
            blocks.append(fill(f"{self.chosen.name}, on batches kept for this: {self.confirmed}", width))
        if self.refused:
            blocks.append(fill(f"no file is to be written: {self.refused}", width))
        return "\n\n".join(blocks)

    def __repr__(self) -> str:
        """A few lines: the verdict, the findings' names, the trial chosen."""
        lines = [
            f"<Diagnosis {self.headline}",
            *(f"  {f.level} {f.rule}: {f.evidence[:90]}" for f in self.findings[:5]),
        ]
        if self.chosen is not None:
            lines.append(f"  best: {self.chosen.name}, {self.chosen.restored:+.2f}")
        return "\n".join(lines) + ">"

    def _repr_html_(self) -> str | None:
        """The page, in a notebook; text where the ``report`` extra is missing."""
        try:
            return self.to_html()
        except ImportError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Findings, trials and gap as plain values; what is not finite is None."""
        trials = [
            {"name": t.name, "command": t.command, "score": t.score, "restored": t.restored, "layers": t.layers,
             "writable": bool(t.recipe)}
            for t in self.trials
        ]  # fmt: skip
        values = {
            "schema": 2,
            "source": self.source,
            "command": self.command,
            "worst": self.worst,
            "looked": self.looked,
            "examined": self.examined,
            "findings": [asdict(f) for f in self.findings],
            "gap": {k: v for k, v in asdict(self.gap).items() if k != "seconds"} if self.gap else None,
            "trials": trials,
            "chosen": self.chosen.name if self.chosen else None,
            "confirmed": self.confirmed._asdict() if self.confirmed else None,
            "refused": self.refused,
            "layers": [asdict(view) for view in self.layers],
        }
        finite: dict[str, Any] = _finite(values)
        return finite

    def to_json(self, path: str | Path | None = None) -> str:
        """`to_dict` as JSON text, and written to ``path`` where one is given."""
        return self._given_out(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", path)

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page as text, and written to ``path`` where one is given."""
        from evenly.tools.report import card

        return self._given_out(card(self), path)

    def fix(self, path: str | Path, *, force: bool = False) -> Trial:
        """Write a checkpoint with the chosen trial's numbers, measured on all the data given.

        The file has the given one's format and keys. It is written beside, read back, loaded and
        scored before it gets its name; `mended` holds what it scored before and after.

        Args:
            path: the new file. Without an input file, the model's state_dict is written.
            force: write also where it is not shown that the file is better.

        Returns:
            The trial, with what was written in ``changes``.

        Raises:
            ValueError: no trial restores anything, it is not shown that the file is better, or
                ``path`` is the input file.
        """
        if self.chosen is None or self.mend is None:
            raise ValueError("no trial that a file can hold restores anything, so there is nothing to write.")
        if self.refused and not force:
            raise ValueError(f"no file is to be written: {self.refused} (force=True, --force, writes it all the same)")
        trial, self.mended = self.mend(self, Path(path))
        return trial

    def _given_out(self, text: str, path: str | Path | None) -> str:
        if path is not None:
            read = [] if self.checkpoint is None else [self.checkpoint.path, *self.checkpoint.parts]
            files.write(path, text, inputs=read)
        return text


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _gap_text(gap: Gap, width: int) -> str:
    verdict = (
        f"{gap.lost:.1f} {gap.unit} lost".replace("  ", " ") if gap.unlike else "no more apart than chance explains"
    )
    text = (
        f"{gap.score}, batch statistics:   {gap.training:8.2f}\n"
        f"{gap.score}, running statistics: {gap.evaluation:8.2f}   {verdict}"
    )
    how = f"scored by {gap.said}, on {gap.samples} samples, in {gap.seconds:.1f} s"
    return text + "\n" + fill(how, width)


def _trial_text(trials: Sequence[Trial]) -> str:
    names = [visible(t.name) for t in trials]
    width = max(map(len, names))
    rows = [f"{'trial':<{width}}  {'score':>8}  {'restored':>8}"]
    rows += [f"{n:<{width}}  {t.score:8.2f}  {t.restored:8.2f}" for n, t in zip(names, trials, strict=True)]
    return "\n".join(rows)
