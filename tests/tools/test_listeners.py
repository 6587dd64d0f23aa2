"""Whoever listens to a module, or puts something in its place, is heard in a fused block as in a plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every

import evenly
from evenly.tools.fuse import fused_from


class Block(nn.Module):
    """conv, norm, residual, activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """As written."""
        return self.act(self.norm(self.conv(x)) + x)


Event = tuple[Any, ...]


def _shapes(values: Any) -> list[Any]:
    return [tuple(v.shape) for v in values if isinstance(v, Tensor)] + [len(values)]


def _forward(seen: list[Event]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        seen.append((type(module).__name__.replace("Fused", ""), _shapes(args)))
        return y * 0.5

    return hook


def _pre(seen: list[Event]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any) -> Any:
        seen.append((type(module).__name__.replace("Fused", ""), _shapes(args)))
        return (args[0] * 0.5,)

    return hook


def _pre_kwargs(seen: list[Event]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        seen.append((_shapes(args), sorted(kwargs)))
        return (args[0] * 0.5,), kwargs

    return hook


def _kwargs(seen: list[Event]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, y: Tensor) -> Tensor:
        seen.append((_shapes(args), sorted(kwargs)))
        return y * 0.5

    return hook


def _backward(seen: list[Event]) -> Callable[..., Any]:
    def hook(module: nn.Module, dx: Any, dy: Any) -> Any:
        seen.append((_shapes(dx), _shapes(dy)))
        return tuple(None if g is None else g * 0.5 for g in dx)

    return hook


def _backward_pre(seen: list[Event]) -> Callable[..., Any]:
    def hook(module: nn.Module, dy: Any) -> Any:
        seen.append(("dy", _shapes(dy)))
        return tuple(g * 0.5 for g in dy)

    return hook


@contextmanager
def _handle(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _instance(module: nn.Module, seen: list[Event]) -> Iterator[None]:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((_shapes(args), sorted(kwargs)))
        return own(*args, **kwargs) * 0.5

    module.forward = forward
    yield
    del module.forward


@contextmanager
def _on_class(module: nn.Module, seen: list[Event], name: str) -> Iterator[None]:
    cls = type(module)
    own, there = getattr(cls, name), name in vars(cls)

    def replaced(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self, (nn.ReLU, nn.BatchNorm2d, Block)):
            seen.append((_shapes(args), sorted(kwargs)))
        return own(self, *args, **kwargs) * 0.5

    setattr(cls, name, replaced)
    yield
    setattr(cls, name, own) if there else delattr(cls, name)


WAYS: dict[str, Callable[[nn.Module, list[Event]], Any]] = {
    "forward hook": lambda m, s: _handle(m.register_forward_hook(_forward(s))),
    "forward hook, always called": lambda m, s: _handle(m.register_forward_hook(_forward(s), always_call=True)),
    "forward hook with kwargs": lambda m, s: _handle(m.register_forward_hook(_kwargs(s), with_kwargs=True)),
    "forward pre-hook": lambda m, s: _handle(m.register_forward_pre_hook(_pre(s))),
    "forward pre-hook with kwargs": lambda m, s: _handle(m.register_forward_pre_hook(_pre_kwargs(s), with_kwargs=True)),
    "full backward hook": lambda m, s: _handle(m.register_full_backward_hook(_backward(s))),
    "full backward pre-hook": lambda m, s: _handle(m.register_full_backward_pre_hook(_backward_pre(s))),
    "global forward hook": lambda m, s: _handle(every.register_module_forward_hook(_forward(s))),
    "global forward pre-hook": lambda m, s: _handle(every.register_module_forward_pre_hook(_pre(s))),
    "global full backward hook": lambda m, s: _handle(every.register_module_full_backward_hook(_backward(s))),
    "global backward pre-hook": lambda m, s: _handle(every.register_module_full_backward_pre_hook(_backward_pre(s))),
    "forward of the instance": _instance,
    "forward of the class": lambda m, s: _on_class(m, s, "forward"),
    "call of the class": lambda m, s: _on_class(m, s, "__call__"),
}


def _heard(block: nn.Module, seen: list[Event], x: Tensor) -> dict[str, Any]:
    leaf = x.clone().requires_grad_()
    y = block(leaf)
    y.square().sum().backward()
    return {"y": y.detach(), "dx": leaf.grad, "seen": list(seen), "mean": block.norm.running_mean.clone()}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("where", ["norm", "act", "block"])
@pytest.mark.parametrize("way", WAYS)
def test_heard_as_without_fusing(way: str, where: str, when: str) -> None:
    """What is heard, and what comes of what the listener does, is the plain block's; afterwards it is fused again."""
    plain, x = Block(), torch.randn(4, 3, 5, 5)
    fused, seen = copy.deepcopy(plain), []
    quiet = evenly.convert(copy.deepcopy(plain), fuse=True)
    with WAYS[way](plain.get_submodule("" if where == "block" else where), seen):
        expected = _heard(plain, seen, x)
    seen.clear()

    with _ignored() if when == "before" else _nothing():
        if when == "after":
            evenly.convert(fused, fuse=True)
        with WAYS[way](fused.get_submodule("" if where == "block" else where), seen):
            if when == "before":
                evenly.convert(fused, fuse=True)
            actual = _heard(fused, seen, x)

    assert expected["seen"]
    assert actual["seen"] == expected["seen"]
    for name in ("y", "dx", "mean"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)
    assert fused_from(quiet) is Block


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _ignored() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # left alone, and named
        yield


def test_a_subclass_of_ours_keeps_its_own_forward() -> None:
    """A norm whose forward takes one tensor is called with one."""

    class Doubled(evenly.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    block = Block()
    block.norm = Doubled(3)
    x = torch.randn(4, 3, 5, 5)
    expected = copy.deepcopy(block)(x)
    with _ignored():
        evenly.convert(block, fuse=True)

    torch.testing.assert_close(block(x), expected)
