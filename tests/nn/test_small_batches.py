"""Ghost batches, batch renormalization, and one value per channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import evenly


@given(samples=st.integers(2, 12), ghosts=st.integers(1, 15), places=st.integers(1, 4), last=st.booleans())
def test_ghosts_are_batches_of_their_own(samples: int, ghosts: int, places: int, last: bool) -> None:
    """Each part, cut as tensor_split cuts, is normalised alone; the mean of their statistics enters once."""
    x = torch.randn(samples, 3, places, 2, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    layer = evenly.BatchNorm2d(3, ghosts=ghosts, momentum=0.5, dtype=torch.float64)

    y = layer(x)

    parts = x.tensor_split(min(ghosts, samples))
    mean = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    var = torch.stack([p.transpose(0, 1).flatten(1).var(1) for p in parts]).mean(0)
    torch.testing.assert_close(y, torch.cat([nn.BatchNorm2d(3, dtype=torch.float64)(p) for p in parts]))
    torch.testing.assert_close(layer.running_mean, 0.5 * mean)
    torch.testing.assert_close(layer.running_var, 0.5 + 0.5 * var)
    assert int(layer.num_batches_tracked) == 1


@given(samples=st.integers(2, 9), ghosts=st.integers(2, 12))
def test_ghosts_of_dense_input_have_two_samples_or_more(samples: int, ghosts: int) -> None:
    """A part of one value per channel would have no variance, so there are at most samples // 2 parts."""
    x = torch.randn(samples, 3)

    y = evenly.BatchNorm1d(3, ghosts=ghosts)(x)

    parts = x.tensor_split(max(1, min(ghosts, samples // 2)))
    torch.testing.assert_close(y, torch.cat([nn.BatchNorm1d(3)(p) for p in parts]))


def test_ghosts_with_masks_of_every_form() -> None:
    """Uneven ghosts cut the mask along, also one for samples or one that broadcasts."""
    x = torch.randn(5, 3, 4)
    for mask in (torch.rand(5, 4) > 0.3, torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0]), torch.rand(1, 1, 4) > 0.3):
        whole = evenly.BatchNorm1d(3, ghosts=2)(x, mask=mask)
        cut = (mask, mask) if mask.shape[0] == 1 else (mask[:3], mask[3:])
        parts = [evenly.BatchNorm1d(3)(p, mask=m) for p, m in zip((x[:3], x[3:]), cut, strict=True)]

        torch.testing.assert_close(whole, torch.cat(parts))


def _renormalized(x: Tensor, mean: Tensor, var: Tensor, r_max: float, d_max: float, eps: float = 1e-5) -> Tensor:
    """The paper's definition for (N, C, L)."""
    m, v = x.mean((0, 2)), x.var((0, 2), correction=0)
    std, running_std = (v + eps).sqrt(), (var + eps).sqrt()
    r = (std / running_std).clamp(1 / r_max, r_max).detach()
    d = ((m - mean) / running_std).clamp(-d_max, d_max).detach()
    col = (slice(None), None)
    return (x - m[col]) / std[col] * r[col] + d[col]


@pytest.mark.parametrize("affine", [True, False])
def test_renorm_is_the_papers(affine: bool) -> None:
    """Output, gradients (none through r and d) and running statistics, with both bounds at work."""
    layer = evenly.BatchNorm1d(4, affine=affine, renorm=evenly.Renorm(1.5, 0.5), dtype=torch.float64)
    plain = evenly.BatchNorm1d(4, affine=affine, dtype=torch.float64)
    for scale in (1.0, 4.0, 0.3):
        x = (torch.randn(3, 4, 2, dtype=torch.float64) * scale + 0.2).requires_grad_()
        expected = _renormalized(x, layer.running_mean.clone(), layer.running_var.clone(), 1.5, 0.5)
        y = layer(x)
        plain(x)

        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_renorm_opens_over_its_warm_up() -> None:
    """The first batch is plain batch norm; the bounds grow linearly from there."""
    layer = evenly.BatchNorm1d(4, momentum=0.0, renorm=evenly.Renorm(3.0, 2.0, warmup=4), dtype=torch.float64)
    x = torch.randn(3, 4, 2, dtype=torch.float64) * 5 + 3
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for seen in range(6):
        share = min(1.0, seen / 4)
        torch.testing.assert_close(layer(x), _renormalized(x, mean, var, 1 + 2 * share, 2 * share))


@pytest.mark.parametrize("single", ["skip", "running"])
@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_by_policy(single: str, shape: tuple[int, ...]) -> None:
    """Skipped: the bias, as a normalised 0; running: as in evaluation. Neither enters the statistics."""
    layer = evenly.BatchNorm(3, single=single)
    nn.init.normal_(layer.bias)
    layer(torch.randn(8, *shape[1:]) + 1)
    seen = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(shape)

    y = layer(x)

    evaluated = layer.eval()(x)
    bias = layer.bias.view(1, 3, *(1 for _ in shape[2:])).expand(shape)
    torch.testing.assert_close(y, evaluated if single == "running" else bias)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, seen[name])


def test_one_value_per_channel_is_an_error_as_in_torch() -> None:
    """The default refuses with torch's sentence, and names the repairs."""
    for layer in (nn.BatchNorm1d(3), evenly.BatchNorm1d(3)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            layer(torch.randn(1, 3))
    with pytest.raises(ValueError, match='single="running"'):
        evenly.BatchNorm1d(3, single="running", track_running_stats=False)(torch.randn(1, 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"renorm": evenly.Renorm(), "ghosts": 2}, "ghosts=1"),
        ({"renorm": evenly.Renorm(), "track_running_stats": False}, "track_running_stats=True"),
        ({"ghosts": 0}, "ghosts must be an integer of at least 1"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1"),
        ({"single": "maybe"}, "single must be one of"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], said: str) -> None:
    """At construction, with the rule and the values."""
    with pytest.raises(ValueError, match=said):
        evenly.BatchNorm1d(3, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="r_max >= 1"):
        evenly.Renorm(r_max=0.5)
