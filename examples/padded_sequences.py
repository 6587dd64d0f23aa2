"""Classify padded sequences with batch norm that does not count the padding, in micro-batches.

Each sequence is a noisy wave of its own length; the class is its frequency. Four micro-batches of
different sizes make one optimizer step, and enter the running statistics as one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import evenly
from evenly.nn.mask import lengths_to_mask


class Net(nn.Module):
    """Two convolutions with masked norms, and a masked mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 16, 5, padding=2), nn.Conv1d(16, 16, 5, padding=2)
        options = {"activation": "relu", "zero_masked": True, "accumulate": 4}
        self.norm1, self.norm2 = evenly.BatchNorm1d(16, **options), evenly.BatchNorm1d(16, **options)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Scores of the two classes."""
        x = self.norm1(self.first(x), mask=keep)
        x = self.norm2(self.second(x), mask=keep)
        return self.head(x.sum(-1) / keep.sum(-1, keepdim=True))  # type: ignore[no-any-return]


def waves(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of 20 to 60 steps, padded with a value that would spoil the statistics; mask; class."""
    lengths, label = torch.randint(20, 61, (number,)), torch.randint(0, 2, (number,))
    keep = lengths_to_mask(lengths, 60)
    phase = torch.rand(number, 1) * 6 + torch.arange(60) * (0.3 + 0.3 * label[:, None])
    x = torch.where(keep, torch.sin(phase) + 0.3 * torch.randn(number, 60), 100.0)
    return x[:, None], keep, label


def main(steps: int = 60) -> float:
    """Train, and return the accuracy on fresh sequences in evaluation."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        for size in (12, 7, 9, 4):
            x, keep, label = waves(size)
            (nn.functional.cross_entropy(net(x, keep), label, reduction="sum") / 32).backward()
        optimizer.step()
    x, keep, label = waves(500)
    accuracy = (net.eval()(x, keep).argmax(1) == label).float().mean().item()
    print(f"accuracy on 500 fresh sequences, in eval(): {accuracy:.3f}")
    print(f"batches entered: {int(net.norm1.num_batches_tracked)} (of {steps * 4} micro-batches)")
    return accuracy


if __name__ == "__main__":
    main()
