"""Fusing activation and residual into the norm before them: proved by data flow, or left alone."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks import networks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.core.activation import Activation
from evenly.tools import fuse
from evenly.tools.fuse import fused_from

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # name: factory, input, how many norms take something on
    "resnet18": (lambda: networks.resnet18(8, 5), (4, 3, 32, 32), 17),
    "resnet50": (lambda: networks.resnet50(4, 5), (4, 3, 32, 32), 49),
    "mobilenetv2": (lambda: networks.mobilenetv2(8, 5), (4, 3, 32, 32), 35),
    "unet": (lambda: networks.UNet(4), (2, 3, 16, 16), 10),
    "mlp": (lambda: networks.mlp(12, 16, 5), (8, 12), 2),
}


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and state after a training step, and the output of evaluation."""
    model.train()
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    y.square().mean().backward()
    found = {"y": y.detach(), "dx": leaf.grad}
    found |= {f"d {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        found["evaluation"] = model.eval()(x)
    return {name: t for name, t in found.items() if t is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, and values equal up to float64 rounding, which fifty layers of four samples magnify."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-8 * float(value.abs().max()) + 1e-12
        torch.testing.assert_close(actual[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def taken(model: nn.Module, *x: Tensor) -> list[tuple[str, str | None, bool]]:
    """Which norms were given what in one forward: name, activation, whether a residual."""
    found: list[tuple[str, str | None, bool]] = []
    names = {module: name for name, module in model.named_modules()}
    take = fuse._take

    def spy(norm: nn.Module, x: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
        found.append((names[norm], activation.name, residual is not None))
        return take(norm, x, residual, activation)

    fuse._take = spy
    try:
        with torch.no_grad():
            model(*x)
    finally:
        fuse._take = take
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fused_network_computes_the_same(name: str) -> None:
    """Output, gradients, running statistics and evaluation are the unconverted network's; nothing is missed."""
    make, shape, number = NETWORKS[name]
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    fused = evenly.convert(copy.deepcopy(model), fuse=True)

    assert len(taken(copy.deepcopy(fused), x)) == number
    assert list(fused.state_dict()) == list(model.state_dict())
    assert_same(outcome(fused, x), outcome(model, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_revert_gives_back_the_blocks_own_classes(name: str) -> None:
    """Every module has the class and the attributes it had."""
    make, _, _ = NETWORKS[name]
    model = make()
    back = evenly.revert(evenly.convert(copy.deepcopy(model), fuse=True))
    for (where, was), (_, now) in zip(model.named_modules(), back.named_modules(), strict=True):
        assert type(now) is type(was), where
        assert vars(now).keys() == vars(was).keys(), where


def test_a_basic_block_takes_relu_and_residual() -> None:
    """One ReLU module for both norms, an in-place add: the first norm takes the ReLU, the second both."""
    block = evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True)
    assert type(block).__name__ == "FusedBasicBlock"
    assert isinstance(block, networks.BasicBlock)
    assert fused_from(block) is networks.BasicBlock
    assert taken(block, torch.randn(2, 4, 6, 6)) == [("bn1", "relu", False), ("bn2", "relu", True)]


class Written(nn.Module):
    """A block with one norm, whose forward is given as a function."""

    def __init__(self, run: Callable[..., Tensor], **children: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1)
        for name, child in children.items():
            setattr(self, name, child)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the function says."""
        return self.run(self, x)


X = torch.Size((3, 4, 5, 5))

TAKEN: dict[str, tuple[Callable[..., Tensor], dict[str, Any], tuple[str | None, bool]]] = {
    "F.relu": (lambda s, x: F.relu(s.norm(x)), {}, ("relu", False)),
    "F.relu inplace": (lambda s, x: F.relu(s.norm(x), inplace=True), {}, ("relu", False)),
    "torch.relu": (lambda s, x: torch.relu(s.norm(x)), {}, ("relu", False)),
    "relu_": (lambda s, x: s.norm(x).relu_(), {}, ("relu", False)),
    "relu6": (lambda s, x: F.relu6(s.norm(x)), {}, ("relu6", False)),
    "leaky": (lambda s, x: F.leaky_relu(s.norm(x), 0.3), {}, ("leaky_relu", False)),
    "elu": (lambda s, x: F.elu(s.norm(x), alpha=0.5), {}, ("elu", False)),
    "silu": (lambda s, x: F.silu(s.norm(x)), {}, ("silu", False)),
    "gelu": (lambda s, x: s.act(s.norm(x)), {"act": nn.GELU()}, ("gelu", False)),
    "identities": (lambda s, x: s.act(s.drop(s.norm(x))), {"drop": nn.Identity(), "act": nn.ReLU()}, ("relu", False)),
    "x + norm": (lambda s, x: x + s.norm(x), {}, (None, True)),
    "norm + x": (lambda s, x: torch.add(s.norm(x), x), {}, (None, True)),
    "add_": (lambda s, x: s.norm(x).add_(x).relu(), {}, ("relu", True)),
    "late residual": (
        lambda s, x: F.relu(s.norm(s.conv(x)) + s.other(x)),
        {"other": nn.Conv2d(4, 4, 1)},
        ("relu", True),
    ),
    "two norms": (lambda s, x: F.relu(s.norm(s.conv(x)) + s.second(x)), {"second": nn.BatchNorm2d(4)}, ("relu", True)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_ways_to_write_it(name: str) -> None:
    """Modules, functions, methods, in place or not: taken on, and the result is the same."""
    run, children, (activation, residual) = TAKEN[name]
    block = Written(run, **children).double()
    x = torch.randn(X, dtype=torch.float64)
    fused = evenly.convert(copy.deepcopy(block), fuse=True)

    assert taken(copy.deepcopy(fused), x) == [("norm", activation, residual)]
    assert_same(outcome(fused, x), outcome(block, x))


def _used_twice(s: Any, x: Tensor) -> Tensor:
    y = s.norm(x)
    return F.relu(y) + y


def _written_into(s: Any, x: Tensor) -> Tensor:
    x = x.clone()
    y = s.norm(x)
    x.mul_(2)
    return F.relu(y + x)


def _into_the_residual(s: Any, x: Tensor) -> Tensor:
    z = s.conv(x)
    z += s.norm(x)
    return F.relu(z) + z


LEFT: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "used twice": (_used_twice, {}),
    "input changed in between": (_written_into, {}),
    "added into the residual": (_into_the_residual, {}),
    "a number added": (lambda s, x: s.norm(x) + 1, {}),
    "scaled add": (lambda s, x: torch.add(s.norm(x), x, alpha=2), {}),
    "added to itself": (lambda s, x: s.norm(x) * 1 + x, {}),
    "tanh gelu": (lambda s, x: F.gelu(s.norm(x), approximate="tanh"), {}),
    "another activation": (lambda s, x: s.act(s.norm(x)), {"act": nn.Hardswish()}),
    "own activation": (lambda s, x: F.relu(s.norm(x)), {"norm": evenly.BatchNorm2d(4, activation="leaky_relu")}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_taken_stays(name: str) -> None:
    """A value that somebody else sees, or an operation that is not ours, stays where it was."""
    run, children = LEFT[name]
    block = Written(run, **children).double()
    x = torch.randn(X, dtype=torch.float64)
    fused = evenly.convert(copy.deepcopy(block), fuse=True)

    assert fused_from(fused) is None
    if name == "input changed in between":  # no norm could go backward through that
        torch.testing.assert_close(fused.eval()(x), block.eval()(x))
    else:
        assert_same(outcome(fused, x), outcome(block, x))


def test_a_residual_that_broadcasts_is_added_by_torch() -> None:
    """Shapes are not in the graph: a residual of another shape or type gives what it gave."""
    block = Written(lambda s, x: F.relu(s.norm(s.conv(x)) + s.scale(x)), scale=nn.AdaptiveAvgPool2d(1)).double()
    x = torch.randn(X, dtype=torch.float64)
    fused = evenly.convert(copy.deepcopy(block), fuse=True)
    assert fused_from(fused) is Written
    assert_same(outcome(fused, x), outcome(block, x))


class Doubled(torch.autograd.Function):
    """An autograd function, whose backward a trace would lose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """As is."""
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """Twice."""
        return 2 * dy


def _no_grad(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = s.conv(x)
    return F.relu(s.norm(x))


def _hooked(s: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        x = s.norm(x)
    return F.relu(x)


def _branch(s: Any, x: Tensor) -> Tensor:
    return F.relu(s.norm(x)) if x.sum() > 0 else s.norm(x)


def _counts(s: Any, x: Tensor) -> Tensor:
    s.calls = 1
    return F.relu(s.norm(x))


UNREADABLE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "training": (lambda s, x: F.dropout(F.relu(s.norm(x)), 0.5, s.training), r"reads self\.training"),
    "branch": (_branch, "branches on its input"),
    "no_grad": (_no_grad, "no_grad"),
    "checkpoint": (lambda s, x: F.relu(checkpoint(s.norm, x, use_reentrant=False)), "branches|checkpointing"),
    "saved tensor hooks": (_hooked, "checkpointing"),
    "autograd function": (lambda s, x: F.relu(s.norm(Doubled.apply(x))), "autograd function Doubled"),
    "writes": (_counts, r"writes self\.calls"),
    "list": (lambda s, x: F.relu(s.norm(x) * s.seen[0]), r"reads self\.seen, a list"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_block_that_cannot_be_read_is_left_and_named(name: str) -> None:
    """Its norm is ours, its forward is its own, and the warning says why."""
    run, reason = UNREADABLE[name]
    block = Written(run, seen=[1.0]).double()
    x = torch.randn(X, dtype=torch.float64).abs()
    with pytest.warns(UserWarning, match=rf"left as they are: the model \(.*{reason}"):
        fused = evenly.convert(copy.deepcopy(block), fuse=True)

    assert fused_from(fused) is None
    assert type(fused.norm) is evenly.BatchNorm2d
    if name not in ("training", "checkpoint"):  # dropout draws; torch counts a recomputed batch twice
        assert_same(outcome(fused, x), outcome(block, x))


def test_hooks_see_what_they_saw() -> None:
    """Listening on a norm or an activation brings the block's own forward back while it lasts."""
    block = evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True)
    x = torch.randn(2, 4, 6, 6)
    seen: list[Tensor] = []
    for module in (block.bn1, block.relu):
        before, seen = taken(block, x), []
        handle = module.register_forward_hook(lambda m, inputs, y, seen=seen: seen.append(y.clone()))
        block(x)
        assert seen
        assert taken(block, x) == []
        handle.remove()
        assert taken(block, x) == before != []
    with torch.no_grad():
        handle = block.bn1.register_forward_hook(lambda m, inputs, y: seen.append(y.clone()))
        block(x)
    assert (seen[-1] < 0).any()


def test_later_changes_are_obeyed() -> None:
    """A replaced child, a changed setting, a monkeypatched class: the block's own forward runs."""
    x = torch.randn(2, 4, 6, 6)

    block = evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True).eval()
    block.relu = nn.Tanh()
    assert block(x).abs().max() <= 1

    block = evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True).eval()
    block.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert not torch.equal(block(x), networks.BasicBlock.forward(_without(block), x))

    stack = evenly.convert(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), fuse=True).eval()
    stack.append(nn.Flatten())
    assert stack(x).ndim == 2
    assert stack[:2](x).min() < 0


def _without(block: Any) -> Any:
    plain = copy.deepcopy(block)
    plain.downsample = None
    return plain


def test_an_optional_input_uses_the_blocks_own_forward() -> None:
    """A forward called with more than its required tensors is not the one that was read."""

    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            x = self.norm(x)
            return F.relu(x if skip is None else x + skip)

    block, x = Optional(), torch.randn(5, 3)
    fused = evenly.convert(copy.deepcopy(block), fuse=True)
    assert taken(fused, x) == [("norm", "relu", False)]
    assert taken(fused, x, x) == []
    torch.testing.assert_close(fused(x, skip=x), block(x, skip=x))


def test_alike_blocks_share_a_class_and_copies_keep_it() -> None:
    """Blocks of one kind have one class; deepcopy and pickle give the same class and results."""
    model = evenly.convert(networks.resnet18(4, 3), fuse=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert type(model.layer1[0]) is type(model.layer1[1])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.layer1[0]) is type(model.layer1[0])
        assert len(taken(other, x)) == 17
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_converting_again_keeps_what_is_fused() -> None:
    """Without fuse=True, too; and with another kind of norm the block still fuses."""
    model = evenly.convert(evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True), norm="group:2")
    assert taken(model, torch.randn(2, 4, 6, 6)) == [("bn1", "relu", False), ("bn2", "relu", True)]
    assert type(evenly.revert(model)) is networks.BasicBlock


def test_tracers_see_the_original_operations() -> None:
    """torch.fx finds norm, add and ReLU, each by itself; the traced graph computes the same."""
    model = evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True).eval()
    x = torch.randn(2, 4, 6, 6)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    assert "relu" in {str(node.target) for node in traced.graph.nodes}


def test_a_fused_block_compiles_without_a_break() -> None:
    """torch.compile takes the fused forward whole."""
    model = evenly.convert(networks.BasicBlock(4, 4, 1), fuse=True)
    plain = copy.deepcopy(model)
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x))


def test_timm_models_compute_the_same() -> None:
    """timm's ResNet: identities for what is switched off, residual added in place, one warning at most."""
    timm = pytest.importorskip("timm", reason="timm, or torchvision, which it imports, is not installed")
    model = timm.create_model("resnet18", num_classes=3).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused = evenly.convert(copy.deepcopy(model), fuse=True)
    assert len([name for name, _, residual in taken(copy.deepcopy(fused), x) if residual]) == 8
    assert_same(outcome(fused, x), outcome(model, x))


def test_a_model_without_norms_is_not_read() -> None:
    """A forward that no norm is part of may be as wild as it likes."""

    class Wild(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = evenly.convert(nn.Sequential(Wild(), nn.BatchNorm1d(3)), fuse=True)

    assert isinstance(model[1], evenly.BatchNorm1d)
