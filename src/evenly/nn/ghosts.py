"""Ghost batches that do not divide the batch: it is cut in two, each half of which they divide."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evenly.backends.records import Tensors

Part = tuple[Tensor, Tensors, int]


def cut(x: Tensor, tensors: Tensors, ghosts: int, channel: int) -> Iterator[Part]:
    """The parts of the batch, each with its residual and mask, and how many ghosts divide it.

    As torch.tensor_split cuts, the first ghosts are one sample longer than the others.
    """
    weight, bias, residual, mask = tensors
    if mask is not None and mask.ndim == x.ndim - 1:
        mask = mask.unsqueeze(channel)
    samples, longer = x.shape[0], x.shape[0] % ghosts
    at = longer * (samples // ghosts + 1)
    for part, number in ((slice(0, at), longer), (slice(at, samples), ghosts - longer)):
        if number:
            yield (
                x[part],
                Tensors(
                    weight,
                    bias,
                    None if residual is None else residual[part],
                    mask[part] if mask is not None and mask.shape[0] == samples else mask,
                ),
                number,
            )
