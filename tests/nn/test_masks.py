"""Masks, lengths and sample weights: equal to running on the elements that count alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import evenly
from evenly.nn.mask import lengths_to_mask


def _packed(x: Tensor, mask: Tensor) -> Tensor:
    """The elements (positions, channels) that count, repeated as often as their weight says."""
    return x.movedim(1, -1)[mask > 0].repeat_interleave(mask[mask > 0].long(), 0)


@given(data=st.data(), places=st.sampled_from([(), (5,), (3, 2), (2, 1, 3)]), whole=st.booleans(), last=st.booleans())
def test_batch_norm_of_what_counts(data: st.DataObject, places: tuple[int, ...], whole: bool, last: bool) -> None:
    """Statistics, output, gradients and running statistics are those of the packed elements."""
    n = data.draw(st.integers(2, 6))
    weights = data.draw(st.lists(st.integers(0, 1 if whole else 3), min_size=n * 8, max_size=n * 8))
    mask = torch.tensor(weights[: n * max(1, torch.Size(places).numel())]).reshape(n, *places).double()
    mask.view(-1)[:2] = 1
    x = torch.randn(n, 3, *places, dtype=torch.float64)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x).requires_grad_()
    packed = _packed(x.detach(), mask).requires_grad_()
    ours, torchs = evenly.BatchNorm(3, dtype=torch.float64), nn.BatchNorm1d(3, dtype=torch.float64)

    y, expected = ours(x, mask=mask.bool() if whole else mask), torchs(packed)

    torch.testing.assert_close(_packed(y, mask), expected)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    dy = torch.randn_like(y)
    (y * dy * mask.unsqueeze(1)).sum().backward()
    (expected * _packed(dy, mask)).sum().backward()
    torch.testing.assert_close(ours.weight.grad, torchs.weight.grad)
    summed = torch.zeros_like(x.movedim(1, -1)[mask > 0])
    owners = torch.arange(len(summed)).repeat_interleave(mask[mask > 0].long())
    assert x.grad is not None and packed.grad is not None
    torch.testing.assert_close(x.grad.movedim(1, -1)[mask > 0], summed.index_add(0, owners, packed.grad))


@pytest.mark.parametrize("groups", [3, 1, None])
def test_samples_of_unequal_length(groups: int | None) -> None:
    """Group and instance norm of padded sequences equal the same on each sequence alone."""
    lengths = torch.tensor([4, 2, 7])
    x = torch.randn(3, 3, 7, dtype=torch.float64)
    mask = lengths_to_mask(lengths, 7)
    layer: nn.Module = evenly.InstanceNorm1d(3) if groups is None else evenly.GroupNorm(groups, 3, dtype=torch.float64)

    y = layer(x, mask=mask)

    for sample, length, out in zip(x, lengths, y, strict=True):
        torch.testing.assert_close(out[:, :length], layer(sample[None, :, :length])[0])


@pytest.mark.parametrize(
    "layer", [evenly.BatchNorm1d, evenly.InstanceNorm1d, lambda c, **k: evenly.GroupNorm(2, c, **k)]
)
def test_zero_masked(layer: Any) -> None:
    """With zero_masked output and gradient are 0 where the mask is, whatever stands there."""
    x = torch.randn(2, 4, 6)
    x[0, :, 4:] = torch.nan
    x.requires_grad_()
    mask = lengths_to_mask(torch.tensor([4, 6]))

    y = layer(4, zero_masked=True)(x, mask=mask)
    y.sum().backward()

    assert x.grad is not None
    for t in (y, x.grad):
        assert torch.isfinite(t).all()
        assert (t[0, :, 4:] == 0).all()


def test_forms_of_a_mask() -> None:
    """Without the channel axis, for samples, broadcast, and differing between channels."""
    x = torch.randn(4, 3, 5)
    layer = evenly.BatchNorm1d(3)
    keep = torch.tensor([1, 0, 1, 1]).bool()
    expected = layer(x, mask=keep[:, None].expand(4, 5))

    for mask in (keep, keep[:, None, None], keep[:, None, None].expand(4, 3, 5), keep.float()):
        torch.testing.assert_close(layer(x, mask=mask), expected)
    assert layer(x, mask=torch.rand(4, 3, 5) > 0.2).shape == x.shape


@pytest.mark.parametrize(
    ("mask", "error", "said"),
    [
        (torch.ones(4, 6).bool(), ValueError, r"does not fit input of shape \(4, 3, 5\)"),
        (torch.ones(3).bool(), ValueError, r"\(4,\) for samples"),
        (torch.ones(4, 5).long(), TypeError, "use mask.bool"),
        (-torch.ones(4, 5), ValueError, "must not be negative"),
        (torch.full((4, 5), torch.nan), ValueError, "negative or NaN"),
    ],
)
def test_wrong_masks(mask: Tensor, error: type[Exception], said: str) -> None:
    """The error names the shapes, or the rule, and what would fit."""
    with pytest.raises(error, match=said):
        evenly.BatchNorm1d(3)(torch.randn(4, 3, 5), mask=mask)


def test_lengths() -> None:
    """Lengths become masks; impossible ones are refused."""
    assert lengths_to_mask(torch.tensor([0, 2])).tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match="between 0 and size=2"):
        lengths_to_mask(torch.tensor([3]), 2)
    with pytest.raises(ValueError, match="integers of shape"):
        lengths_to_mask(torch.tensor([1.5]))
