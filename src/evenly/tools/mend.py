"""A file mended: measured on all the data, written beside, read back, loaded, scored, and only then given its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenly.tools import checkpoint, files
from evenly.tools.diagnosis import Diagnosis, Mended
from evenly.tools.finding import Trial
from evenly.tools.labels import Values
from evenly.tools.measure import Pool
from evenly.tools.parts import Source
from evenly.tools.probe import Subject
from evenly.tools.recalibrate import passes, population, settled
from evenly.tools.scores import Interval, Score, disagreement
from evenly.tools.sites import preserved


@dataclass
class Mender:
    """Writes what a diagnosis found best.

    Args:
        subject: the model, as it was diagnosed.
        state: its state_dict then.
        source: all the data.
        endless: whether the data may have no end; then it is read until it moves nothing.
        score: what outputs are worth.
        confirm: batches that the trial was neither measured nor chosen on.
        before: what the model's own evaluation scored there.
        reference: its outputs there in training form.
        groups: of each of those samples, if the data has groups.
    """

    subject: Subject
    state: Mapping[str, Tensor]
    source: Source
    endless: bool
    score: Score
    confirm: Sequence[Any]
    before: Values
    reference: Sequence[Any]
    groups: Tensor | None

    def __call__(self, diagnosis: Diagnosis, path: Path) -> tuple[Trial, Mended]:
        """The trial with what was written, and what the file scores.

        Raises:
            ValueError: the model changed meanwhile, the file cannot hold the numbers, or it would be worse.
        """
        trial = diagnosis.chosen
        assert trial is not None
        for key, value in self.subject.model.state_dict().items():
            if not _same(value.detach().cpu(), self.state[key]):
                raise ValueError(f"the model changed since it was diagnosed ({key}); diagnose it again.")
        pool = population(self.subject, self.source.whole(), until=1e-3 if self.endless else None)
        changes = self._changes(diagnosis, trial, pool)
        beside = path.with_name(f".{path.name}.part")
        try:
            loaded = self._written(diagnosis, path, beside, changes)
            mended = self._judged(path, loaded, pool.samples)
            if self.score.judges and mended.better.high < 0:
                raise ValueError(f"{path} is not written: it would be worse, {mended.better}.")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        return replace(trial, changes=changes), mended

    def _changes(self, diagnosis: Diagnosis, trial: Trial, pool: Pool) -> dict[str, Tensor]:
        """New values by key of the model's; keys that the file lacks are not invented."""
        known, changes = self.subject.sites, {}
        times = passes(known, pool)
        for name, mean, var in settled(known, pool, trial.layers or None, trial.blend):
            site = known[name]
            if site.keys[0] is None or site.keys[1] is None:
                raise ValueError(f"the statistics of {name} are not part of the state_dict, so no file can hold them.")
            for key, value, like in zip(site.keys, (mean, var), (site.mean, site.var), strict=False):
                changes[str(key)] = value.to(like.dtype).cpu()
            if trial.blend == 1 and site.counter is not None and site.keys[2] is not None:
                changes[site.keys[2]] = torch.full_like(site.counter, times * pool.calls[name], device="cpu")
        file = diagnosis.checkpoint
        held = (
            changes if file is None else {k: v for k, v in changes.items() if diagnosis.keys.get(k, k) in file.tensors}
        )
        return {key: value for key, value in held.items() if not _same(value, self.state[key])}

    def _written(self, diagnosis: Diagnosis, name: Path, path: Path, changes: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors as the new file has them, read back."""
        file, keys = diagnosis.checkpoint, diagnosis.keys
        if file is not None:
            theirs = {keys.get(key, key): value for key, value in changes.items()}
            files.check_outputs({"the mended file": str(name)}, [file.path])
            file.write(path, theirs)
            back = checkpoint.read(path, file.inside or None).tensors
            return {key: back[keys.get(key, key)] for key in self.state if keys.get(key, key) in back}
        if name.suffix == ".safetensors":
            raise ValueError("without an input file a state_dict is written by torch.save; name the file *.pt.")
        torch.save({**self.state, **changes}, path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))

    def _judged(self, path: Path, loaded: dict[str, Tensor], samples: int) -> Mended:
        model = self.subject.model
        with preserved(model):
            model.load_state_dict(loaded, strict=False)
            outputs = self.subject.outputs(self.confirm)
        if not self.score.judges:
            nothing = Interval(float("nan"), -float("inf"), float("inf"), 0)
            after = disagreement(outputs, self.reference)
            before = disagreement(self.subject.outputs(self.confirm), self.reference)
            return Mended(path, before, after, nothing, (), samples)
        after_values = self.score.values(outputs, self.confirm)
        better = self.score.better(self.before, after_values)
        parts: tuple[Interval, ...] = ()
        if self.groups is not None and len(self.groups) == len(self.before.of):
            parts = tuple(self.score.better(self.before, after_values, keep=self.groups == g) for g in (0, 1))
        return Mended(path, self.score.shown(self.before), self.score.shown(after_values), better, parts, samples)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
