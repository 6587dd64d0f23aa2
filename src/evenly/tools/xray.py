"""What a checkpoint alone gives away: no code, no data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evenly.tools.checkpoint import Checkpoint, read
from evenly.tools.diagnosis import Diagnosis
from evenly.tools.finding import Finding, ranked
from evenly.tools.groups import NormSet, sets
from evenly.tools.measure import apart
from evenly.tools.rules import RULES
from evenly.tools.sites import sites
from evenly.tools.stored import Layer, layers_of, view


def xray(source: str | Path | Mapping[str, Tensor] | nn.Module, *, inside: str | None = None) -> Diagnosis:
    """Look at the batch norms of a checkpoint: no code is run, no data needed.

    Every set of norms in a file is examined (model and averaged copy, student and teacher,
    generator and critic), and named where there are several.

    Args:
        source: a file (see `evenly.tools.checkpoint.read`), a state_dict or a module.
        inside: of a file, this set alone.

    Returns:
        A diagnosis with findings only.

    Raises:
        ValueError: the file is no checkpoint, or has no such set.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> model[1].running_var[2] = float("nan")
        >>> [(f.rule, f.level, f.layers) for f in xray(model).findings if f.level == "error"]
        [('non-finite', 'error', ('1',))]
    """
    if isinstance(source, nn.Module):
        name, settings = type(source).__name__, settings_of(source)
        return _of(name, f"evenly.xray({name.lower()})", source.state_dict(), settings)
    if isinstance(source, Mapping):
        return _of("state_dict", "evenly.xray(state_dict)", source, {})
    file = read(source, inside)
    command = f"evenly xray {source}" + (f" --inside {inside}" if inside else "")
    found = [s for s in sets(file) if inside is None or s.inside == inside]
    if len(found) > 1:
        return _of_sets(Path(source).name, command, file, found)
    one = _of(Path(source).name, command, file.tensors, file.settings, file)
    if found and one.checkpoint is not None and found[0].inside not in ("", file.inside):
        return _of_sets(Path(source).name, command, file, found)
    return one


def settings_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """``eps`` and ``momentum`` by layer, where the class's attribute means that."""
    return {name: {"eps": site.eps, "momentum": site.momentum} for name, site in sites(model).items()}


def _of(
    source: str, command: str, content: Mapping[str, Any], settings: Mapping[str, Any], file: Checkpoint | None = None
) -> Diagnosis:
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    found = layers_of(tensors, settings)
    views = [view(layer) for layer in found]
    return Diagnosis(
        source, command, look(found, tensors), layers=views, checkpoint=file, looked=bool(found),
        examined=[_said(len(found)) + _foreign(tensors, len(found))],
    )  # fmt: skip


def _said(norms: int) -> str:
    return f"examined: {norms or 'no'} batch norm{'s' * (norms != 1)} with running statistics"


def _foreign(tensors: Mapping[str, Tensor], found: int) -> str:
    """What the names of other libraries say."""
    theirs = [key for key in tensors if key.endswith(("moving_mean", "moving_variance", "moving_var"))]
    if theirs and not found:
        return f"; {len(theirs)} tensors have the names of TensorFlow or Keras ({theirs[0]}): convert the file first"
    return ""


def _of_sets(source: str, command: str, file: Checkpoint, found: list[NormSet]) -> Diagnosis:
    """All sets, each by its name."""
    findings: list[Finding] = []
    layers, lines = [], []
    for one in found:
        name = _name(one)
        settings = next((g.settings for g in file.groups if g.inside == one.inside), {})
        norms = layers_of(one.tensors, settings)
        lines.append(f"examined, {name}: {_said(len(norms)).removeprefix('examined: ')}")
        layers += [replace(view(layer), name=f"{name}: {layer.name}") for layer in norms]
        findings += [replace(f, evidence=f"in {name}: {f.evidence}") for f in look(norms, one.tensors)]
    findings += [f for a, b in combinations(found, 2) for f in _copies(a, b)]
    return Diagnosis(source, command, ranked(findings), layers=layers, checkpoint=file, examined=lines)


def _name(one: NormSet) -> str:
    return "/".join(part for part in (one.inside, one.prefix.rstrip(".")) if part) or "the file"


def _copies(a: NormSet, b: NormSet) -> list[Finding]:
    """Two copies of one network whose weights are close, and whose statistics are not."""
    one, two = ({k.removeprefix(s.prefix): t for k, t in s.tensors.items()} for s in (a, b))
    if one.keys() != two.keys() or any(one[k].shape != two[k].shape for k in one):
        return []
    weights = [k for k in one if one[k].ndim > 1 and one[k].is_floating_point()]
    far = [float((one[k] - two[k]).float().norm() / two[k].float().norm().clamp(min=1e-12)) for k in weights]
    if not far or max(far) > 0.5:
        return []
    distances = {}
    for layer in layers_of(one):
        mean, var = (two[f"{layer.name}.{key}"].double() for key in ("running_mean", "running_var"))
        distances[layer.name] = float(apart(layer.mean.double(), layer.var.double(), mean, var, layer.eps).median())
    bad = {name: d for name, d in distances.items() if not d <= 0.5}
    if not bad:
        return []
    worst = max(bad, key=lambda n: (bad[n] != bad[n], bad[n]))
    return [
        Finding(
            "copies-disagree", "warning", tuple(bad),
            f"the weights of {_name(a)} and {_name(b)} are alike (at most {100 * max(far):.0f} % apart), the running "
            f"statistics of {worst or 'the model'} are {bad[worst]:.2g} standard deviations apart.",
            "one of the two copies has statistics that are not of its weights: an averaged copy whose buffers were not "
            "averaged, or were averaged before they settled.",
            "evenly.recalibrate the copy that is evaluated.",
        )
    ]  # fmt: skip


def look(layers: list[Layer], tensors: Mapping[str, Tensor]) -> list[Finding]:
    """All findings from stored tensors, the worst first."""
    return ranked(finding for rule in RULES for finding in rule(layers, tensors))
