"""What a trace does with lines that hand sizes and tensors around: fused, or left alone with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHILD = r'''
import math, random, warnings
import numpy as np
import torch, evenly
from torch import nn
import torch.nn.functional as F

LINES = """
torch.zeros(x.shape[0], 1, 3)
torch.zeros(x.shape)
torch.zeros(x)
torch.ones(x.shape[0], 1, 3)
torch.randn(x.shape[0], 1, 3)
torch.rand(x.size(0), 1, 3)
torch.arange(x.shape[0]).view(-1, 1, 1).float()
torch.full((x.shape[0], 1, 3), 1.0)
torch.full((2, 1, 3), x.shape[0])
torch.eye(x.shape[2])
torch.linspace(0, 1, x.shape[2])
torch.tensor(x.shape[0]).float()
torch.tensor([x.shape[0], 1.0, 2.0])
torch.tensor(x)
torch.as_tensor(x)
torch.zeros_like(x)
torch.empty_like(x).zero_()
x.new_zeros(x.shape[0], 1, 3)
self.plain.expand(x.shape[0], -1, -1)
self.plain.repeat(x.shape[0], 1, 1)
self.plain.reshape(-1, x.shape[2])
self.plain.new_zeros(x.shape[0], 1, 3)
PLAIN.expand(x.shape[0], -1, -1)
PLAIN.repeat(x.shape[0], 1, 1)
PLAIN.reshape(-1, x.shape[2])
PLAIN.new_zeros(x.shape[0], 1, 3)
PLAIN[:, :x.shape[1]]
PLAIN[x.long() * 0, 0]
PLAIN + x
x + PLAIN
self.plain[:, :x.shape[1]]
x[:, -1:]
x[:, :x.shape[1] // 2].sum(1, keepdim=True)
x[:, None].mean(1)
torch.zeros(1) if x.shape[0] > 5 else torch.ones(1)
torch.zeros(1) if x.mean() > 5 else torch.ones(1)
torch.zeros(1) if x.shape[0] in (2, 3) else torch.ones(1)
torch.zeros(1) if {2: True}.get(x.shape[0]) else torch.ones(1)
torch.zeros(1) if isinstance(x, torch.Tensor) else torch.ones(1)
torch.zeros(1) if isinstance(x.shape[0], int) else torch.ones(1)
torch.zeros(1) if isinstance(self.lin(x), torch.Tensor) else torch.ones(1)
torch.zeros(1) if isinstance(x.chunk(2)[0], torch.Tensor) else torch.ones(1)
torch.zeros(1) if type(x) is torch.Tensor else torch.ones(1)
torch.zeros(1) if f"{x.shape[0]}" == "2" else torch.ones(1)
torch.zeros(1) if str(x.shape) == "" else torch.ones(1)
torch.from_numpy(np.asarray(x.detach()))
torch.from_numpy(np.zeros(x.shape, dtype="float32"))
torch.zeros(1) + math.sqrt(x.shape[2])
x / x.shape[2] ** 0.5
x * len(x)
x * int(x.shape[0])
x * x.shape[0]
x * float(x.mean())
x * x.mean().item()
x * random.random()
x * torch.rand(1).item()
x * self.calls.add_(1)
sum(x) + x
torch.stack([row for row in x])
torch.stack(x.unbind(0))
torch.cat([a for a in x.chunk(2)] )
torch.cat(x.chunk(2, dim=1), 1)
torch.cat([x, x]).chunk(2)[0]
torch.nn.Parameter(x)
torch.Tensor(x)
torch.Tensor(x.shape[0], 1, 3).fill_(1)
torch.Size([x.shape[0]])[0] * x
max(x.shape[0], 1) * x
[1.0, 2.0, 3.0, 4.0][x.shape[0]] * x
x.data.mul(1)
x.new_tensor(x.shape[0]) * x
F.pad(x, (0, 0)) + F.one_hot(torch.zeros(1, dtype=torch.long), x.shape[2])
torch.where(x > 0, x, PLAIN)
torch.maximum(PLAIN, x)
""".strip().splitlines()
PLAIN = torch.ones(1, 5, 3)

def make(line):
    space = dict(globals())
    exec(f"def forward(self, x):\n    y = {line}\n    return F.relu(self.norm(self.lin(x))) + y", space)
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.lin = nn.LayerNorm(3), nn.Linear(3, 3)
            self.register_buffer("plain", torch.ones(1, 5, 3)); self.register_buffer("calls", torch.zeros(()))
        forward = space["forward"]
    return Block()

def run(block, x):
    torch.manual_seed(0); random.seed(0)
    try:
        return block(x)
    except Exception as error:
        return type(error).__name__

for line in LINES:
    torch.manual_seed(1)
    block = make(line)
    x = torch.randn(2, 5, 3)
    before = [t.clone() for t in block.state_dict().values()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fused = evenly.convert(make(line), fuse=True)
    fused.load_state_dict(block.state_dict())
    taken = type(fused).__name__ == "FusedBlock"
    reason = "fused" if taken else str(said[-1].message).split("the model (")[-1] if said else "NO REASON"
    assert all(torch.equal(a, b) for a, b in zip(before, fused.state_dict().values())), f"{line}: state written"
    for shape in ((2, 5, 3), (3, 5, 3), (2, 4, 3)):
        x = torch.randn(shape)
        want, got = run(block, x), run(fused, x)
        alike = want == got if isinstance(want, str) else torch.allclose(want, got, atol=1e-6)
        print("ok" if alike else "WRONG", "|", line, "|", reason, "|", want if isinstance(want, str) else "")
print("ran", len(LINES))
'''


def test_lines_with_sizes(tmp_path: Path) -> None:
    """Seventy-four lines, each in a block with a norm: no crash, the right values, and a reason where left alone."""
    script = tmp_path / "lines.py"
    script.write_text(CHILD)
    done = subprocess.run([sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    assert rows.pop() == ["ran 74"]
    assert [row for row in rows if row[0] != "ok"] == []
    assert [row for row in rows if "NO REASON" in row[2]] == []
    assert sum(row[2] == "fused" for row in rows) == 3 * 15
