"""One set of running statistics from those that processes gathered each for itself."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenly.core.moments import Moments
from evenly.nn.sync import everyone
from evenly.tools.sites import Site, sites

Model = TypeVar("Model", bound=nn.Module)


class _Statistics(NamedTuple):
    """One process's running statistics, on the CPU in float64; each field by name of layer."""

    mean: dict[str, Tensor]
    var: dict[str, Tensor]
    batches: dict[str, int]


def pool_statistics(model: Model, *, process_group: dist.ProcessGroup | str | None = None) -> Model:
    """Make the processes' running statistics agree, once: what each of them saw is pooled.

    With ``n`` batches seen by a process, whose running mean is ``mean`` and variance ``var``::

        pooled mean = sum(n * mean) / sum(n)
        pooled var  = sum(n * (var + (mean - pooled mean)**2)) / sum(n)

    The second term is the spread between the processes, which a mean of their variances leaves
    out. Layers that saw no batch anywhere stay as they are; ``num_batches_tracked`` becomes the
    largest of the processes'. Use it before evaluating or saving a model that was trained on
    several processes with plain batch norm (torch.nn's or evenly's). Every process must call it.

    Args:
        model: any module; changed in place, its layers' order and channels the same everywhere.
        process_group: the processes; None for all.

    Returns:
        ``model``.

    Raises:
        ValueError: the processes' layers differ; nothing is changed then.
        RuntimeError: another process did not answer.

    Example:
        >>> import torch
        >>> layer = pool_statistics(torch.nn.BatchNorm1d(1))     # alone: as it was
        >>> layer.running_var
        tensor([1.])
    """
    norms = sites(model)
    all_statistics = everyone(lambda: _of(norms), process_group)
    if len(all_statistics) == 1:
        return model
    _refuse_different(all_statistics)
    with torch.no_grad():
        for name, norm in norms.items():
            batches = [one.batches[name] for one in all_statistics]
            if any(batches):
                pooled = _pooled(name, all_statistics)
                norm.write(pooled.mean, pooled.var)
                if norm.counter is not None:
                    norm.counter.fill_(max(batches))
    return model


def _of(norms: dict[str, Site]) -> _Statistics:
    read = {name: [t.cpu() for t in site.read()] for name, site in norms.items()}
    return _Statistics(
        {name: mean for name, (mean, _) in read.items()},
        {name: var for name, (_, var) in read.items()},
        # One where it does not count.
        {name: 1 if site.counter is None else int(site.counter) for name, site in norms.items()},
    )


def _pooled(name: str, all_statistics: list[_Statistics]) -> Moments:
    """The union of what the processes saw; one with NaN among its statistics spoils them, as it should."""
    return Moments.of(
        Moments(float(n), one.mean[name], one.var[name] * n) for one in all_statistics if (n := one.batches[name])
    )


def _refuse_different(all_statistics: list[_Statistics]) -> None:
    shapes = [{name: len(mean) for name, mean in one.mean.items()} for one in all_statistics]
    for rank, theirs in enumerate(shapes):
        if theirs != shapes[0]:
            name = next(n for n in {**shapes[0], **theirs} if shapes[0].get(n) != theirs.get(n))
            raise ValueError(
                f"the processes' models differ: {name or 'the model'} has {shapes[0].get(name, 'no')} channels with "
                f"running statistics on process 0, {theirs.get(name, 'none')} on process {rank}; give all the same."
            )
