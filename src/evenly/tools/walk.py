"""The one walk over a model: which modules are norms, where they sit, and everything put back.

Norms are found by what they are (a class of torch.nn, or anything that keeps ``running_mean`` and
``running_var``), never by their name, so that timm's and detectron2's are seen as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalises over the batch: torch's, evenly's, or one with the same buffers."""
    if isinstance(module, _BatchNorm):
        return True
    return not isinstance(module, _InstanceNorm) and {"running_mean", "running_var"} <= module._buffers.keys()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of the family: batch, instance, group, layer or RMS."""
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)) or is_batch_norm(module)


def norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every norm once, with its first name (``""`` for the model itself), in the order of registration."""
    return ((name, module) for name, module in model.named_modules() if is_norm(module))


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every batch norm once, with its first name."""
    return ((name, module) for name, module in norms(model) if is_batch_norm(module))


def tracking(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norms that hold running statistics, by name; lazy ones that saw no input yet are left out."""
    return {name: module for name, module in batch_norms(model) if keeps_statistics(module)}


def keeps_statistics(module: nn.Module) -> bool:
    """Whether running statistics are there to be read and written."""
    mean, var = (module._buffers.get(name) for name in ("running_mean", "running_var"))
    return mean is not None and var is not None and not is_lazy(mean)


class Place(NamedTuple):
    """Where a module sits: ``parent._modules[attribute] is module``; ``name`` is its full name."""

    parent: nn.Module
    attribute: str
    name: str
    module: nn.Module


def places(model: nn.Module) -> Iterator[Place]:
    """Every place a module is registered at; a shared module has several, the model itself has none."""
    for name, parent in list(model.named_modules()):
        for attribute, module in list(parent._modules.items()):
            if module is not None:
                yield Place(parent, attribute, f"{name}.{attribute}" if name else attribute, module)


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module whose forward may call a norm: the parents of norms, past containers that are never called."""
    for name, block in list(model.named_modules()):
        if not _is_container(block) and any(is_norm(child) for child in _callable_children(block)):
            yield name, block


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _callable_children(block: nn.Module) -> Iterator[nn.Module]:
    for child in block.children():
        if _is_container(child):
            yield from _callable_children(child)
        else:
            yield child


def replace(model: nn.Module, swap: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Put ``swap(name, module)`` where each module was, and return the model (itself, or its substitute).

    Each distinct module is asked once, under its first name, and its substitute goes to all of its
    places, so sharing survives. ``swap`` returns the module it was given to leave it alone.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace(model, lambda name, m: nn.Tanh() if isinstance(m, nn.ReLU) else m)[1]
        Tanh()
    """
    everywhere = list(places(model))
    new = {module: swap(name, module) for name, module in list(model.named_modules())}
    for place in everywhere:
        place.parent._modules[place.attribute] = new[place.module]
    return new[model]


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end, also after an error.

    Restored are the values of parameters and buffers, their gradients (absent inside), each
    module's ``training`` flag, a norm's ``momentum``, and torch's random state. Attributes that a
    model's own forward changes are beyond its reach.
    """
    tensors = {t: t.detach().clone() for t in _tensors(model)}
    gradients = {p: p.grad for p in model.parameters()}
    modules = [(module, module._buffers.copy(), _settings(module)) for module in model.modules()]
    random = _random_state(model)
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in tensors.items():
                tensor.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, buffers, settings in modules:
            module._buffers.update(buffers)
            module.__dict__.update(settings)
        _set_random_state(random)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers that hold values, each once."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor):
            yield tensor


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: module.__dict__[name] for name in ("training", "momentum") if name in module.__dict__}


def _random_state(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    on_cuda = any(p.is_cuda for p in model.parameters())
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_cuda else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
