"""Statistics of shifted data."""

from __future__ import annotations

import pytest
import torch
from tests.tools import nets
from torch import nn

from evenly.tools.adapt import adapt


@pytest.mark.parametrize("blend", [0.0, 0.25, 1.0])
def test_blend_is_the_share_of_the_new_statistics(blend):
    """Mean and variance are (1 − blend) of the old and blend of the new."""
    x = torch.randn(50, 3) * 2 + 7

    norm = adapt(nn.BatchNorm1d(3), [x[:20], x[20:]], blend=blend)

    torch.testing.assert_close(norm.running_mean, blend * x.mean(0))
    torch.testing.assert_close(norm.running_var, (1 - blend) + blend * x.var(0))


def _accuracy(model, batches):
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).float().mean().item() for x, y in batches) / len(batches)


def test_a_real_network_recovers_on_shifted_images():
    """Weak contrast breaks a trained network; adapting without labels restores it, and half a blend does so in part."""
    shifted = [(x * 0.4 + 0.5, y) for x, y in nets.batches(6)]

    broken = _accuracy(nets.trained("resnet"), shifted)
    half = _accuracy(adapt(nets.trained("resnet"), shifted, blend=0.5), shifted)
    whole = _accuracy(adapt(nets.trained("resnet"), shifted), shifted)

    assert broken < half < whole
    assert whole > broken + 0.2


def test_a_blend_out_of_range_is_refused():
    """The error names the range."""
    with pytest.raises(ValueError, match="0 to 1"):
        adapt(nn.BatchNorm1d(3), [torch.randn(8, 3)], blend=1.5)
