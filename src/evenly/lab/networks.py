"""The networks that the lab trains: the same seed gives the same weights with and without a norm."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

import evenly
from evenly.lab.data import Dataset
from evenly.lab.setting import Setting

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}

NORMS = ("none", "batch", "ghost", "renorm", "layer", "group", "instance")


def build(setting: Setting, data: Dataset, seed: int) -> nn.Module:
    """The network of ``setting`` for ``data``, initialised from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in setting.network:
            network = _users(setting)
        else:
            network = {"dense": _dense, "convolutional": _convolutional, "recurrent": _recurrent}[setting.network](
                setting, data
            )
        if setting.init is not None:
            _initialize(network, setting.init)
    return network


def norm(setting: Setting, channels: int, images: bool = False) -> nn.Module | None:
    """The norm of ``setting`` over ``channels``, or None."""
    batch = evenly.BatchNorm2d if images else evenly.BatchNorm1d
    running: dict[str, Any] = {"momentum": setting.momentum, "average": setting.average}
    return {
        "none": lambda: None,
        "batch": lambda: batch(channels, affine=setting.affine, **running),
        "ghost": lambda: batch(channels, ghosts=setting.ghosts, **running),
        # The bounds open over the first quarter of the run, when the running statistics are not yet worth much.
        "renorm": lambda: batch(channels, renorm=evenly.Renorm(3.0, 5.0, warmup=setting.steps // 4), **running),
        # The layer norm of images: one mean and variance per sample, weight and bias per channel.
        "layer": lambda: evenly.GroupNorm(1, channels) if images else evenly.LayerNorm(channels),
        "group": lambda: evenly.GroupNorm(_groups(channels), channels),
        "instance": lambda: evenly.InstanceNorm2d(channels, affine=True),
    }[setting.norm]()


def _groups(channels: int) -> int:
    return max(groups for groups in range(1, 9) if channels % groups == 0)


class Shift(nn.Module):
    """A random scale and shift per unit, drawn anew at each training step (Santurkar et al., 2018).

    ``y = x * (1 + size * a) + size * b`` with a and b uniform in -1 to 1; nothing in evaluation.
    """

    def __init__(self, units: int, size: float, seed: int) -> None:
        super().__init__()
        self.units, self.size = units, size
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """``x``, disturbed."""
        if not self.training:
            return x
        scale, shift = (torch.rand(2, self.units, generator=self.generator) * 2 - 1) * self.size
        disturbed: Tensor = x * (1 + scale) + shift
        return disturbed


def _hidden(setting: Setting, linear: nn.Module, channels: int, images: bool, layer: int) -> list[nn.Module]:
    """Linear, norm and activation in the order of ``setting.place``."""
    rest: list[nn.Module] = [ACTIVATIONS[setting.activation]()]
    normed = [m for m in (norm(setting, channels, images),) if m is not None]
    if setting.shift:
        normed.append(Shift(channels, setting.shift, seed=layer))
    return [linear, *normed, *rest] if setting.place == "before" else [linear, *rest, *normed]


def _dense(setting: Setting, data: Dataset) -> nn.Module:
    inputs = data.train.x[0].numel()
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(setting.depth):
        linear = nn.Linear(inputs if i == 0 else setting.width, setting.width, bias=setting.bias)
        layers += _hidden(setting, linear, setting.width, False, i)
    return nn.Sequential(*layers, nn.Linear(setting.width, data.classes))


def _convolutional(setting: Setting, data: Dataset) -> nn.Module:
    gray = data.train.x.ndim == 3  # (N, H, W): a channel axis is missing
    layers: list[nn.Module] = [nn.Unflatten(1, (1, data.train.x.shape[1]))] if gray else []
    channels = 1 if gray else data.train.x.shape[1]
    for i in range(setting.depth):
        stride = 1 if i == 0 else 2  # every layer after the first halves the picture
        convolution = nn.Conv2d(channels, setting.width, 3, stride, padding=1, bias=setting.bias)
        channels = setting.width
        layers += _hidden(setting, convolution, setting.width, True, i)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(setting.width, data.classes))


class Recurrent(nn.Module):
    """``h = tanh(norm(W x + U h))`` over the steps of each sequence; the classes are read from the last ``h``.

    With the norm on the inputs, ``h = tanh(norm(W x) + U h)``, all steps share one mean and variance.
    """

    def __init__(self, setting: Setting, features: int, classes: int) -> None:
        super().__init__()
        self.input = nn.Linear(features, setting.width)
        self.hidden = nn.Linear(setting.width, setting.width, bias=False)
        self.norm = norm(setting, setting.width)
        self.output = nn.Linear(setting.width, classes)
        self.masked = setting.masked and setting.norm == "batch"
        self.fewest, self.on_inputs = setting.fewest, setting.place == "inputs"

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Scores of shape ``(N, classes)`` for ``x`` of shape ``(N, steps, features)``."""
        h = x.new_zeros(len(x), self.hidden.out_features)
        inputs = self.input(x)
        if self.on_inputs:
            alive = evenly.functional.lengths_to_mask(lengths, x.shape[1])
            inputs = self._normed(inputs.transpose(1, 2), alive).transpose(1, 2)
        for t, from_input in enumerate(inputs.unbind(1)):
            alive = lengths > t
            if self.masked and not alive.any():
                break
            z = from_input + self.hidden(h)
            if not self.on_inputs:
                z = self._normed(z, alive)
            h = torch.where(alive[:, None], torch.tanh(z), h)
        scores: Tensor = self.output(h)
        return scores

    def _normed(self, z: Tensor, alive: Tensor) -> Tensor:
        norm: Any = self.norm
        if norm is None:
            return z
        if not self.masked:
            normed: Tensor = norm(z)
        elif self.training and int(alive.sum()) < self.fewest:
            normed = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            normed = norm(z, mask=alive)
        return normed


def _recurrent(setting: Setting, data: Dataset) -> nn.Module:
    return Recurrent(setting, data.train.x.shape[-1], data.classes)


def _initialize(network: nn.Module, deviation: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def factory(path: str) -> Callable[[], nn.Module]:
    """The function that ``MODULE:FACTORY`` names.

    Raises:
        ValueError: there is no such module, no such name, or it is not callable.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"--model takes MODULE:FACTORY, got {path!r}; for example my_networks:small")
    if os.getcwd() not in sys.path:  # an installed command has its own folder there instead
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ValueError(
            f"--model {path}: cannot import {module_name} ({error}); run from the folder it is in"
        ) from None
    except (Exception, SystemExit) as error:  # whatever the user's module does at its top
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"--model {path}: importing {module_name} failed ({reason}); mend it there") from None
    if not callable(found):
        raise ValueError(f"--model {path}: {module_name} has no function {name}; name one that returns the network")
    return found  # type: ignore[no-any-return]


def _users(setting: Setting) -> nn.Module:
    """The user's network: as built, or with its norms taken out."""
    network = factory(setting.network)()
    if not isinstance(network, nn.Module):
        raise ValueError(f"--model {setting.network} returned {type(network).__name__}; return a torch.nn.Module")
    if not any(is_norm(m) for m in network.modules()):
        raise ValueError(f"--model {setting.network} has no norm layer; the lab compares it with and without its norms")
    if setting.norm == "batch":
        return evenly.convert(network)
    if setting.norm == "none":
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if is_norm(child):
                    setattr(parent, name, nn.Identity())
    return network


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a norm of the family, torch's or evenly's."""
    return isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
