"""What a checkpoint alone gives away: no code, no data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evenly.tools.checkpoint import Checkpoint, read
from evenly.tools.diagnosis import Diagnosis
from evenly.tools.finding import Finding, ranked
from evenly.tools.rules import RULES
from evenly.tools.stored import Layer, layers_of, view


def xray(source: str | Path | Mapping[str, Tensor]) -> Diagnosis:
    """Look at the batch norms of a checkpoint: no code is run, no data needed.

    Args:
        source: a file (see `evenly.tools.checkpoint.read`) or a state_dict.

    Returns:
        A diagnosis with findings only.

    Raises:
        ValueError: the file is no checkpoint.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> model[1].running_var[2] = float("nan")
        >>> [(f.rule, f.level, f.layers) for f in xray(model.state_dict()).findings if f.level == "error"]
        [('non-finite', 'error', ('1',))]
    """
    if isinstance(source, Mapping):
        named = {key: value for key, value in source.items() if isinstance(value, Tensor)}
        return _diagnosis("state_dict", "evenly.xray(state_dict)", named, {}, None)
    file = read(source)
    return _diagnosis(Path(source).name, f"evenly xray {source}", file.tensors, file.settings, file)


def _diagnosis(
    source: str, command: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], file: Checkpoint | None
) -> Diagnosis:
    found = layers_of(tensors, settings)
    return Diagnosis(source, command, look(found, tensors), layers=[view(layer) for layer in found], checkpoint=file)


def look(layers: list[Layer], tensors: Mapping[str, Tensor]) -> list[Finding]:
    """All findings from stored tensors, the worst first."""
    return ranked(finding for rule in RULES for finding in rule(layers, tensors))
