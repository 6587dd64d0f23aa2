"""How one batch enters the running statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evenly.backends.running import Running, update
from evenly.core.moments import Moments
from evenly.core.running import cumulative, ema

NAN, INF = float("nan"), float("inf")


def buffers(channels: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fresh running mean, variance, counter and skips."""
    counters = torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)
    return torch.zeros(channels).double(), torch.ones(channels).double(), *counters


def moments(count: object, mean: list[list[float]], m2: list[list[float]]) -> Moments:
    """Moments of shape (sets, channels)."""
    return Moments(count, torch.tensor(mean).double(), torch.tensor(m2).double())


def test_a_batch_enters_as_torch_has_it() -> None:
    """After 100 batches of mixed sizes, mean and variance equal torch's to float64 rounding."""
    generator = torch.Generator().manual_seed(0)
    peer = nn.BatchNorm1d(2, dtype=torch.float64)
    mean, var, batches, skipped = buffers()
    for step in range(100):
        x = 3 + 2 * torch.randn(2 + step % 7, 2, generator=generator, dtype=torch.float64)
        peer(x)
        m2 = (x - x.mean(0)).square().sum(0)
        update(Running(mean, var, ema(0.1), batches, skipped), Moments(len(x), x.mean(0)[None], m2[None]))

    torch.testing.assert_close(mean, peer.running_mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(var, peer.running_var, rtol=1e-13, atol=1e-13)
    assert batches == peer.num_batches_tracked == 100


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("field", ["mean", "m2"])
def test_one_bad_channel_skips_the_whole_batch(bad: float, field: str) -> None:
    """Nothing is written, the counter stays, the skip is counted."""
    values = {"mean": [[1.0, 2.0]], "m2": [[1.0, 1.0]]}
    values[field][0][1] = bad
    mean, var, batches, skipped = buffers()

    update(Running(mean, var, ema(0.1), batches, skipped), moments(4, **values))

    assert mean.tolist() == [0, 0]
    assert var.tolist() == [1, 1]
    assert (int(batches), int(skipped)) == (0, 1)


def test_a_bad_batch_can_be_let_in() -> None:
    """Without skip_nonfinite the statistics are poisoned, as torch's are."""
    mean, var, batches, skipped = buffers()
    rule = Running(mean, var, ema(0.1), batches, skipped, skip_nonfinite=False)

    update(rule, moments(4, [[NAN, 1.0]], [[NAN, 1.0]]))

    assert torch.isnan(mean).tolist() == [True, False]
    assert (int(batches), int(skipped)) == (1, 0)


def test_an_empty_batch_changes_nothing() -> None:
    """No elements: no write, no count, no skip."""
    mean, var, batches, skipped = buffers()

    update(Running(mean, var, ema(0.1), batches, skipped), moments(0, [[0.0, 0.0]], [[0.0, 0.0]]))

    assert (mean.tolist(), var.tolist(), int(batches), int(skipped)) == ([0, 0], [1, 1], 0, 0)


def test_a_count_of_one_writes_the_mean_alone() -> None:
    """One element has a mean and no unbiased variance; channels differ."""
    mean, var, batches, _ = buffers(3)
    count = torch.tensor([[1.0, 3.0, 0.0]]).double()

    update(Running(mean, var, ema(0.5), batches), moments(count, [[4.0, 4.0, 9.0]], [[0.0, 4.0, 0.0]]))

    assert mean.tolist() == [2, 2, 0]
    assert var.tolist() == [1, 1.5, 1]
    assert batches == 1


def test_biased_variance_on_request() -> None:
    """Keras averages m2 / count."""
    mean, var, _, _ = buffers(1)

    update(Running(mean, var, ema(1.0), unbiased=False), moments(4, [[0.0]], [[6.0]]))

    assert var.tolist() == [1.5]


def test_several_sets_enter_once_with_their_mean() -> None:
    """Ghosts: one update with the mean of the parts' statistics; an empty part has no say."""
    mean, var, batches, _ = buffers(1)
    count = torch.tensor([[3.0], [3.0], [0.0]]).double()

    update(Running(mean, var, ema(1.0), batches), moments(count, [[1.0], [3.0], [99.0]], [[2.0], [6.0], [0.0]]))

    assert (mean.tolist(), var.tolist(), int(batches)) == ([2], [2], 1)


def test_the_counter_decides_a_cumulative_weight_in_full_precision() -> None:
    """The third batch weighs one third, to float64 rounding."""
    mean, var, batches, _ = buffers(1)
    for value in (3.0, 6.0, 12.0):
        update(Running(mean, var, cumulative(), batches), moments(2, [[value]], [[1.0]]))

    assert mean.item() == pytest.approx(7.0, rel=1e-15)
