"""Situations that happen to people, rebuilt on the digits: what is said of each, and what the remedy restores.

``python -m tests.tools.situations`` runs all of them and writes docs/results/situations.json.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.tools import nets
from torch import Tensor, nn
from torch.nn import functional as F

from evenly.tools.diagnose import diagnose

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "situations.json"


class Case(NamedTuple):
    """A model and its data, as somebody has them."""

    model: nn.Module
    batches: list[Any]
    options: dict[str, Any] = {}  # noqa: RUF012  # an immutable record


class Situation(NamedTuple):
    """What happened, and what shall be said."""

    cause: str
    make: Callable[[], Case]
    rule: str
    level: str = "error"


def _conv(inputs: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, width in ((inputs, 12), (12, 12), (12, 24)):
        layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))


@cache
def _trained(kind: str) -> nn.Module:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "color":
            return _fit(_conv(3), color)
        if kind == "instance":
            model = _conv()
            for place, width in ((1, 12), (4, 12), (7, 24)):
                model[place] = nn.InstanceNorm2d(width, affine=True, track_running_stats=True)
            return _fit(model)
        return _fit(_conv())


def _fit(model: nn.Module, change: Callable[[Tensor], Tensor] = lambda x: x, steps: int = 200) -> nn.Module:
    x, y = nets.digits()
    x = change(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        index = torch.randint(512, len(x), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        decay.step()
    return model.eval()


def color(x: Tensor) -> Tensor:
    """Three channels that are not alike."""
    return torch.cat((x, 0.5 * x + 0.3, 0.2 * x + 0.05), 1)


def net(kind: str = "plain") -> Any:
    """A copy of a trained network."""
    return copy.deepcopy(_trained(kind))


def data(change: Callable[[Tensor], Tensor] = lambda x: x, size: int = 64) -> list[Any]:
    """The 512 digits that training did not see, in batches."""
    x, y = nets.digits()
    return list(zip(change(x[:512]).split(size), y[:512].split(size), strict=True))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Its batch norms."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def _spoilt(change: Callable[[Any], object]) -> Callable[[], Case]:
    def make() -> Case:
        model = net()
        with torch.no_grad():
            change(model)
        return Case(model.eval(), data())

    return make


def _each(change: Callable[[nn.BatchNorm2d], object]) -> Callable[[], Case]:
    return _spoilt(lambda model: [change(norm) for norm in norms(model)])


def _other_data(model: nn.Module) -> None:
    model.train()
    for x, _ in data():
        model(1 - x)


def _last_batch(model: nn.Module) -> None:
    x, y = nets.digits()
    for norm in norms(model):
        norm.momentum = 0.99
    model.train()(x[y == 1][:8])


def _noisy_weights(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for place in (0, 3, 6):
        weight = model[place].weight
        weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)


def _pruned(model: Any) -> None:
    for place in (0, 3, 6):
        weight = model[place].weight
        weight *= weight.abs() > weight.abs().flatten().quantile(0.6)


def _rounded(model: Any) -> None:
    for place in (0, 3, 6):
        weight = model[place].weight
        step = weight.abs().amax() / 3
        weight.copy_((weight / step).round() * step)


def _swapped(model: Any) -> None:
    one, two = model[1].state_dict(), model[4].state_dict()
    for key in ("running_mean", "running_var"):
        getattr(model[1], key).copy_(two[key])
        getattr(model[4], key).copy_(one[key].clone())


def _half_frozen() -> Case:
    model = net()
    for norm in norms(model):
        norm.requires_grad_(False)
    with torch.no_grad():
        _other_data(model)
    return Case(model.eval(), data())


class _Wrapped(nn.Module):
    """A trained network behind something that its maker added."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()


class _Dropping(_Wrapped):
    """Dropout that is always on."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net[9:](F.dropout(self.net[:9](x), 0.6))


class _Noise(_Wrapped):
    """Noise on the input, in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.7 * torch.rand_like(x))


class _Stuck(_Wrapped):
    """Keeps its dropout in training, for Monte Carlo."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.6)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.dropout.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net[9:](self.dropout(self.net[:9](x)))


class _Dictionary(_Wrapped):
    """A norm in a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = {"norm": nn.BatchNorm2d(1)}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.extra["norm"](x) * 0.37 + 0.3)


class _Always(_Wrapped):
    """Batch statistics, written into the call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("var", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.batch_norm(x, self.mean, self.var, training=True) * 0.37 + 0.3)


class _Augments(_Wrapped):
    """Augmentation inside the model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (torch.rand_like(x) > 0.3) if self.training else x)


class _Own(nn.Module):
    """Arithmetic of its own, and an activation in it: what it normalises cannot be told from outside."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for key in ("weight", "bias"):
            setattr(self, key, getattr(norm, key))
        for key in ("running_mean", "running_var"):
            self.register_buffer(key, getattr(norm, key).clone())

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            t.view(1, -1, 1, 1) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.leaky_relu((x - mean) / (var + 1e-5).sqrt() * weight + bias, 0.01)


def _own() -> Case:
    model = net()
    for place in (1, 4, 7):
        model[place] = _Own(model[place])
    return Case(model.eval(), data())


def _mixed() -> Case:
    x, y = nets.digits()
    x = x[:512].clone()
    x[::2] = 1 - x[::2]
    return Case(net(), list(zip(x.split(64), y[:512].split(64), strict=True)))


def _untracked(model: nn.Module) -> None:
    for norm in norms(model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def _labels(change: Callable[[Tensor], Tensor]) -> Callable[[], Case]:
    return lambda: Case(net(), [(x, change(y)) for x, y in data()])


def _unlabelled() -> Case:
    model = net()
    with torch.no_grad():
        _other_data(model)
    return Case(model.eval(), [x for x, _ in data()])


def _infinite() -> Case:
    return Case(net(), [(x.index_fill(0, torch.tensor([0]), float("inf")), y) for x, y in data()])


def _poisoned(model: nn.Module) -> None:
    model.train()(torch.full((4, 1, 8, 8), float("nan")))


def _reset(place: int) -> Callable[[Any], object]:
    return lambda model: model[place].reset_running_stats()


SITUATIONS = {
    "first norm reset": Situation(
        "the first norm was left out when weights were copied", _spoilt(_reset(1)), "never-updated"
    ),
    "last norm reset": Situation(
        "the last norm was left out when weights were copied", _spoilt(_reset(7)), "never-updated"
    ),
    "all reset": Situation(
        "a file without buffers: no norm has statistics", _each(lambda n: n.reset_running_stats()), "train-eval-gap"
    ),
    "poisoned": Situation("one batch of NaN", _spoilt(_poisoned), "non-finite"),
    "overflow": Situation(
        "a variance beyond float16", _spoilt(lambda m: m[4].running_var[3].fill_(float("inf"))), "non-finite"
    ),
    "last batch": Situation(
        "Keras's momentum=0.99, the last batch of one class", _spoilt(_last_batch), "momentum-inverted", "warning"
    ),
    "other data": Situation("run on white-on-black images without eval()", _spoilt(_other_data), "train-eval-gap"),
    "noisy weights": Situation(
        "weights merged with others, statistics kept", _spoilt(_noisy_weights), "train-eval-gap"
    ),
    "pruned": Situation("60 % of the weights pruned", _spoilt(_pruned), "train-eval-gap"),
    "rounded": Situation("weights rounded to 3 bits", _spoilt(_rounded), "train-eval-gap"),
    "standard deviations": Situation(
        "a converter stored standard deviations", _each(lambda n: n.running_var.sqrt_()), "train-eval-gap"
    ),
    "negative variance": Situation(
        "a converter subtracted eps twice", _spoilt(lambda m: m[4].running_var[:2].fill_(-1e-3)), "negative-variance"
    ),
    "sign": Situation(
        "a converter flipped the sign of the means", _each(lambda n: n.running_mean.neg_()), "train-eval-gap"
    ),
    "swapped": Situation("two layers' statistics changed places", _spoilt(_swapped), "train-eval-gap"),
    "scale factor": Situation(
        "Caffe's scale factor not divided out",
        _each(lambda n: (n.running_mean.mul_(999.98), n.running_var.mul_(999.98))),
        "scale-factor",
    ),
    "constant": Situation(
        "one constant added to every variance",
        _each(lambda n: n.running_var.add_(1.0)),
        "constant-in-variance",
        "warning",
    ),
    "shrunk": Situation(
        "buffers averaged with zeros",
        _each(lambda n: (n.running_mean.mul_(0.3), n.running_var.mul_(0.09))),
        "train-eval-gap",
    ),
    "times 255": Situation(
        "images from 0 to 255 in place of 0 to 1", lambda: Case(net(), data(lambda x: x * 255)), "input-changed"
    ),
    "by 255": Situation("images divided by 255 twice", lambda: Case(net(), data(lambda x: x / 255)), "input-changed"),
    "minus one to one": Situation(
        "images from −1 to 1 in place of 0 to 1", lambda: Case(net(), data(lambda x: 2 * x - 1)), "input-changed"
    ),
    "inverted": Situation("black and white exchanged", lambda: Case(net(), data(lambda x: 1 - x)), "input-changed"),
    "channel order": Situation(
        "BGR in place of RGB", lambda: Case(net("color"), data(lambda x: color(x).flip(1))), "input-changed"
    ),
    "half frozen": Situation("requires_grad=False, then other data in train()", _half_frozen, "half-frozen", "warning"),
    "dropout": Situation("F.dropout without training=", lambda: Case(_Dropping().eval(), data()), "random-evaluation"),
    "noise": Situation("noise added in evaluation, too", lambda: Case(_Noise().eval(), data()), "random-evaluation"),
    "Monte Carlo": Situation("train() keeps a dropout on", lambda: Case(_Stuck().eval(), data()), "random-evaluation"),
    "dictionary": Situation(
        "a norm in a plain dictionary", lambda: Case(_Dictionary().eval(), data()), "batch-dependent"
    ),
    "always": Situation(
        "F.batch_norm(training=True), written out", lambda: Case(_Always().eval(), data()), "batch-dependent"
    ),
    "augments": Situation(
        "augmentation under self.training", lambda: Case(_Augments().eval(), data()), "training-branch", "note"
    ),
    "untracked": Situation("running statistics set to None", _spoilt(_untracked), "untracked", "warning"),
    "instance": Situation(
        "instance norm with running statistics", lambda: Case(net("instance"), data()), "instance-running", "warning"
    ),
    "mixed": Situation("two kinds of images in every batch", _mixed, "two-groups", "note"),
    "labels moved": Situation(
        "labels of another order of classes", _labels(lambda y: (y + 3) % 10), "not-the-norms", "warning"
    ),
    "unlabelled": Situation("statistics of other data, and no labels", _unlabelled, "forms-disagree", "warning"),
    "diverged": Situation(
        "training diverged: weights are NaN", _spoilt(lambda m: m[3].weight.fill_(float("nan"))), "non-finite"
    ),
    "infinite": Situation("infinity in every batch", _infinite, "non-finite-input"),
    "own arithmetic": Situation("norms that compute by themselves, with an activation inside", _own, "", ""),
}


def accuracy(case: Case) -> float:
    """What the user's own eval() scores on all the data, in percent; the model is left as it is."""
    twin = copy.deepcopy(case.model).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        right = [(twin(x).argmax(1) == y).float().mean() for x, y in case.batches if not isinstance(x, list)]
    return 100 * float(torch.stack(right).mean())


def run(name: str) -> dict[str, Any]:
    """One situation: what is said, and what the file that is written scores."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = SITUATIONS[name].make()
        found = diagnose(case.model, case.batches, **case.options)
    said = [(f.rule, f.level) for f in found.findings if f.level != "note" or f.rule == SITUATIONS[name].rule]
    labelled = isinstance(case.batches[0], tuple)
    before = accuracy(case) if labelled else None
    after, trial = None, None
    if found.best is not None:
        with tempfile.TemporaryDirectory() as folder:
            trial = found.fix(file := Path(folder) / "mended.pt").name
            case.model.load_state_dict(torch.load(file))
        after = accuracy(case)
    return {"cause": SITUATIONS[name].cause, "said": said, "before": before, "after": after, "trial": trial,
            "refused": found.refused, "looked": found.looked, "examined": found.examined}  # fmt: skip


if __name__ == "__main__":
    RESULTS.write_text(json.dumps({name: run(name) for name in SITUATIONS}, indent=1) + "\n", "utf-8")
    print(f"wrote {RESULTS}")
