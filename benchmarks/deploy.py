"""Evaluation time of folded networks beside the unfolded, torch.compile and onnxruntime; ratios within one run.

    python benchmarks/deploy.py                       all networks, batch 1 and 32
    python benchmarks/deploy.py --model resnet50 --batch 1 --size 64 --rounds 3

Every form answers the same input first and is compared with the eager model: a wrong one gets no time.
In each round every form takes one turn, in an order that changes; what is printed is the median ratio to eager.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import networks

import evenly


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1; norm, ReLU, 3x3; the result is put beside the input."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Input and new features, side by side."""
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, y], 1)


def densenet121(width: int = 64, growth: int = 32) -> nn.Sequential:
    """Huang et al., 2016, https://arxiv.org/abs/1608.06993."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(DenseLayer(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if stage < 3:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


class Squeeze(nn.Module):
    """A gate per channel from the mean of the channels."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, inside, 1), nn.SiLU(), nn.Conv2d(inside, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input, gated."""
        return x * self.gate(F.adaptive_avg_pool2d(x, 1))


class MBConv(nn.Module):
    """Expand, convolve by channel, gate, project (EfficientNet)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        wide = [nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()] if expand > 1 else []
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        narrow = nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside)
        gate = Squeeze(hidden, max(1, inside // 4))
        self.block = nn.Sequential(*wide, depthwise, nn.BatchNorm2d(hidden), nn.SiLU(), gate, *narrow)
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return x + self.block(x) if self.shortcut else self.block(x)


def efficientnet_b0() -> nn.Sequential:
    """Tan and Le, 2019, https://arxiv.org/abs/1905.11946."""
    rows = [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
    ]
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU()]
    inside = 32
    for expand, channels, repeat, stride, kernel in [*rows, (6, 320, 1, 1, 3)]:
        for place in range(repeat):
            layers.append(MBConv(inside, channels, kernel, stride if place == 0 else 1, expand))
            inside = channels
    layers += [nn.Conv2d(inside, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class RepBlock(nn.Module):
    """3x3, 1x1 and identity, each with its norm, summed (RepVGG)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside))
        self.one = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.identity = nn.BatchNorm2d(outside) if inside == outside and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.three(x) + self.one(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


def repvgg_a0() -> nn.Sequential:
    """Ding et al., 2021, https://arxiv.org/abs/2101.03697."""
    layers: list[nn.Module] = [RepBlock(3, 48, 2)]
    inside = 48
    for channels, repeat in ((48, 2), (96, 4), (192, 14), (1280, 1)):
        for place in range(repeat):
            layers.append(RepBlock(inside, channels, 2 if place == 0 else 1))
            inside = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": networks.resnet18, "resnet50": networks.resnet50, "mobilenetv2": networks.mobilenetv2,
    "efficientnet_b0": efficientnet_b0, "densenet121": densenet121, "repvgg_a0": repvgg_a0,
}  # fmt: skip


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in evaluation, with statistics of one batch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval().requires_grad_(False)


def forms(model: nn.Module, x: Tensor, wanted: set[str], folder: str) -> dict[str, Callable[[], Tensor]]:
    """Everyone who takes a turn."""
    folded = evenly.fold(model, x[:2] if len(x) > 1 else x)
    converted = evenly.convert(copy.deepcopy(model), fuse=True)
    found: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: model(x), "converted": lambda: converted(x), "folded": lambda: folded(x)
    }  # fmt: skip
    if "compile" in wanted:
        compiled = torch.compile(folded)
        found["folded + compile"] = lambda: compiled(x)
    if "onnx" in wanted:
        import onnxruntime

        for name, subject in (("onnxruntime", model), ("onnxruntime, folded", folded)):
            path = f"{folder}/{name.replace(', ', '-')}.onnx"
            torch.onnx.export(subject, (x,), path, dynamo=True, verbose=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: x.numpy()}
            found[name] = lambda s=session, f=feed: torch.from_numpy(s.run(None, f)[0])  # type: ignore[misc]
    return found


def measure(turns: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, Any]:
    """Median time of eager, and of each form the median and range of its ratio to eager; wrong ones are named."""
    right = turns["eager"]()
    largest = float(right.abs().max())
    errors = {name: float((turn() - right).abs().max()) / largest for name, turn in turns.items()}
    times: dict[str, list[float]] = {name: [] for name, error in errors.items() if error < 1e-3}
    order, dice = list(times), random.Random(0)
    for _ in range(rounds):
        dice.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            turns[name]()
            times[name].append(time.perf_counter() - begin)
    rows: dict[str, Any] = {"eager_ms": 1e3 * statistics.median(times["eager"])}
    for name, error in errors.items():
        ratios = sorted(t / e for t, e in zip(times.get(name, []), times["eager"], strict=False))
        rows[name] = {
            "error": error,
            "ratio": statistics.median(ratios) if ratios else None,
            "range": ratios[:: max(1, len(ratios) - 1)],
        }
    return rows


def main() -> None:
    """Measure, print, and write JSON where asked for."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", action="append", choices=list(MODELS))
    ask.add_argument("--batch", action="append", type=int)
    ask.add_argument("--size", type=int, default=224)
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--with", dest="wanted", default="compile,onnx", help="compile, onnx, both or none")
    ask.add_argument("--json")
    asked = ask.parse_args()
    warnings.simplefilter("ignore")
    results = []
    for name in asked.model or MODELS:
        for batch in asked.batch or (1, 32):
            torch.manual_seed(0)
            model = settled(MODELS[name](), torch.randn(8, 3, asked.size, asked.size))
            x = torch.randn(batch, 3, asked.size, asked.size)
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                rows = measure(forms(model, x, set(asked.wanted.split(",")), folder), asked.rounds)
            print(f"{name}, batch {batch}: eager {rows['eager_ms']:.1f} ms")
            for form, row in rows.items():
                if isinstance(row, dict):
                    told = "wrong" if row["ratio"] is None else f"{row['ratio']:.2f} of eager"
                    print(f"  {form:22} {told:18} error {row['error']:.1e}", flush=True)
            results.append({"model": name, "batch": batch, "size": asked.size, **rows})
    if asked.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}
        Path(asked.json).write_text(json.dumps(about, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
