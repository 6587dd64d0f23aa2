"""Who keeps running statistics: every norm of a model, also where `named_modules` does not reach.

A site is one pair of running statistics. It is known by its tensors, so that a call is told to be
its own whoever makes it: a module, a functional call, a module in a plain list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from evenly.tools.freeze import is_frozen


@dataclass
class Site:
    """One pair of running statistics.

    Args:
        name: of the module that holds them, or of the running mean.
        mean: the running mean itself, shape ``(channels,)``.
        var: the running variance itself.
        counter: the count of batches, or None.
        module: that holds them, or None (functional calls).
        keys: of mean, var and counter in the state_dict; None where it does not hold them.
        eps: added to the variance, as the norm says or as seen at its call.
        registered: whether ``eval()``, ``to()`` and ``state_dict()`` reach it.
        axis: of a class with arithmetic of its own, the channel axis that its output was checked on.
    """

    name: str
    mean: Tensor
    var: Tensor
    counter: Tensor | None = None
    module: nn.Module | None = None
    keys: tuple[str | None, str | None, str | None] = (None, None, None)
    eps: float = 1e-5
    registered: bool = True
    axis: int | None = None

    @property
    def ours(self) -> bool:
        """Whether evenly's own kernels normalise here, which torch's dispatcher does not see."""
        return isinstance(self.module, nn.Module) and is_ours(self.module)

    @property
    def unbiased(self) -> bool:
        """Whether the running variance is the unbiased one."""
        return bool(getattr(self.module, "unbiased", True)) if self.ours else True

    @property
    def momentum(self) -> float | None:
        """Weight of a new batch, where the class's ``momentum`` means that; None elsewhere."""
        return self.module.momentum if isinstance(self.module, _NormBase) else None

    @property
    def frozen(self) -> bool:
        """Whether something holds the statistics under ``train()``."""
        return self.module is not None and (is_frozen(self.module) or (self.ours and bool(self.module.frozen)))

    @property
    def in_training(self) -> bool:
        """Whether its own flags ask for the statistics of the batch."""
        return self.module is None or (self.module.training and not self.frozen)

    def read(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance in float64."""
        return self.mean.detach().double(), self.var.detach().double()

    def write(self, mean: Tensor, var: Tensor) -> None:
        """Set both; shapes ``(channels,)``."""
        with torch.no_grad():
            self.mean.copy_(mean)
            self.var.copy_(var)


def is_ours(module: nn.Module) -> bool:
    """Whether a module is a batch norm of evenly's, or a subclass of one."""
    return isinstance(module, _NormBase) and any(c.__module__.startswith("evenly.nn") for c in type(module).__mro__)


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Every module once: its name, itself, and whether it is registered.

    Modules in plain lists, tuples, dictionaries and attributes that nn.Module does not know of are
    found as well.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        seen.add(id(module))
        yield name, module, True
    for name, module in list(model.named_modules()):
        for attribute, value in _plain(module):
            for where, hidden in _hidden(f"{name}.{attribute}" if name else attribute, value):
                for below, inner in hidden.named_modules():
                    if id(inner) not in seen:
                        seen.add(id(inner))
                        yield f"{where}.{below}" if below else where, inner, False


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """A module's own attributes, without torch's."""
    own = vars(nn.Module())
    return ((k, v) for k, v in list(vars(module).items()) if k not in own and not k.startswith("__"))


def _hidden(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield name, value
    elif isinstance(value, (list, tuple, dict)) and depth < 2:
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _hidden(f"{name}[{key}]", item, depth + 1)


def sites(model: nn.Module) -> dict[str, Site]:
    """The batch norms of a model that hold running statistics, by name, in the order of registration."""
    names = {id(t): key for key, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    found: dict[str, Site] = {}
    seen: set[int] = set()  # a traced program keeps the module it was traced from
    for name, module, registered in modules(model):
        held = _held(module)
        if held is not None and not isinstance(module, _InstanceNorm) and id(held[0]) not in seen:
            mean, var, counter = held
            seen.add(id(mean))
            keys = (names.get(id(mean)), names.get(id(var)), names.get(id(counter)))
            found[name] = Site(name, mean, var, counter, module, keys, _eps(module), registered)
    return found


def _eps(module: nn.Module) -> float:
    eps = getattr(module, "eps", 1e-5)
    return float(eps) if isinstance(eps, (int, float)) else 1e-5


def _held(module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """A module's running mean, variance and counter; None where it has none yet."""
    if not {"running_mean", "running_var"} <= set(module._buffers.keys()):
        return None
    mean, var = module.running_mean, module.running_var
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or is_lazy(mean) or mean.ndim != 1:
        return None
    counter = getattr(module, "num_batches_tracked", None)
    return mean, var, counter if isinstance(counter, Tensor) else None


def instance_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Instance norms that hold running statistics: another network in evaluation than in training."""
    return {n: m for n, m, _ in modules(model) if isinstance(m, _InstanceNorm) and _held(m) is not None}


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end, also after an error, in modules out of reach and scripted ones, too.

    Restored are the values of parameters and buffers, their gradients (absent inside), buffers that
    were replaced, modes, a norm's ``momentum``, and torch's random state. Attributes that a model's
    own forward changes are beyond its reach.
    """
    every = [module for _, module, _ in modules(model)]
    tensors = {id(t): t for m in every for t in (*m.parameters(), *m.buffers()) if not is_lazy(t)}
    values = [(t, t.detach().clone()) for t in tensors.values()]
    gradients = [(t, t.grad) for t in tensors.values() if t.is_leaf]
    modes = [(m, m.training) for m in every]
    own = [(m, m._buffers.copy(), {k: v for k, v in vars(m).items() if k == "momentum"}) for m in every
           if not isinstance(m, torch.jit.ScriptModule)]  # fmt: skip
    on_cuda = any(t.is_cuda for t in tensors.values())
    random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_cuda else []
    for tensor, _ in gradients:
        tensor.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for tensor, gradient in gradients:
            tensor.grad = gradient
        for module, buffers, settings in own:
            module._buffers.update(buffers)
            module.__dict__.update(settings)
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
        torch.set_rng_state(random[0])
        if on_cuda:
            torch.cuda.set_rng_state_all(random[1])
