"""What a diagnosis draws: distributions of a layer's worst channels, against its running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenly.tools import measure
from evenly.tools.finding import Channel
from evenly.tools.observe import Call
from evenly.tools.probe import Subject, handed

_BINS = 48
_VALUES = 200_000  # of a channel that are kept


def channels(subject: Subject, batches: list[Any], pool: measure.Pool, layer: str, most: int = 3) -> list[Channel]:
    """Distributions of the worst channels of one layer."""
    site, moments = subject.sites[layer], pool.moments[layer]
    apart = measure.distance(site, moments).nan_to_num(torch.inf)
    worst = apart.topk(min(most, len(apart))).indices.tolist()
    values: dict[int, list[Tensor]] = {c: [] for c in worst}

    def keep(call: Call) -> None:
        if call.site.name == layer and sum(len(v) for v in values[worst[0]]) < _VALUES:
            for c in worst:
                values[c].append(call.x.detach().select(call.channel, c).flatten().cpu().float())

    subject.run(batches, given=handed(set(subject.switching), None), see=keep, keep=False)
    if not values[worst[0]]:
        return []
    mean, var = (t.cpu() for t in site.read())
    std = moments.var.sqrt().cpu()
    return [
        _channel(layer, c, torch.cat(values[c]), float(moments.mean[c]), float(std[c]), float(mean[c]), float(var[c]))
        for c in worst
    ]


def _channel(layer: str, number: int, x: Tensor, mean: float, std: float, running: float, var: float) -> Channel:
    x = x[torch.isfinite(x)]
    low, high = (mean - 4 * std - 1e-6, mean + 4 * std + 1e-6)
    density, edges = torch.histogram(x.clamp(low, high), _BINS, range=(low, high), density=True)
    return Channel(
        layer, number, tuple(edges.tolist()), tuple(density.tolist()), mean, std, running, max(var, 0.0) ** 0.5
    )
