"""Training, watched from outside: a loop that hands the network over at the steps one asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenly.lab.data import Dataset, Split
from evenly.lab.networks import ACTIVATIONS, build
from evenly.lab.setting import Setting

ACTIVATION_TYPES = tuple(ACTIVATIONS.values())


def batches(split: Split, size: int, seed: int) -> Iterator[Split]:
    """Random batches without end; each epoch in a new order, its uneven rest left out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(split))
    while True:
        order = torch.randperm(len(split), generator=generator)
        for start in range(0, len(split) - size + 1, size):
            yield split.take(order[start : start + size])


def training(setting: Setting, seed: int, data: Dataset, at: Iterable[int]) -> Iterator[tuple[int, nn.Module]]:
    """Train by plain stochastic gradient descent and hand over the network after each step of ``at``.

    Step 0 is the network before training. What the caller does to the network in between counts:
    evaluate it, and leave weights, statistics and mode as they were (`accuracy` does).

    Args:
        setting: how the network is built and trained.
        seed: of weights and batches, the same with and without a norm.
        data: what it is trained on.
        at: ascending steps, none above ``setting.steps``.
    """
    network = build(setting, data, seed).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=setting.rate)
    wanted = set(at)
    if 0 in wanted:
        yield 0, network
    for step, batch in enumerate(batches(data.train, setting.batch, seed), start=1):
        if step > setting.steps:
            return
        optimizer.zero_grad()
        F.cross_entropy(network(*batch.inputs), batch.y).backward()
        optimizer.step()
        if step in wanted:
            yield step, network


def trained(setting: Setting, seed: int, data: Dataset) -> nn.Module:
    """The network after all its steps."""
    return next(network for _, network in training(setting, seed, data, [setting.steps]))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation without gradients; each module's mode is as before afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def accuracy(network: nn.Module, split: Split) -> float:
    """The share of samples whose class the network finds in evaluation."""
    with evaluating(network):
        scores = torch.cat([network(*part.inputs) for part in _parts(split)])
    return float((scores.argmax(1) == split.y).double().mean())


def _parts(split: Split, size: int = 512) -> Iterator[Split]:
    for index in torch.arange(len(split)).split(size):
        yield split.take(index)


def activation_inputs(network: nn.Module, split: Split) -> list[Tensor]:
    """What enters each activation of the network, first to last, for all samples at once, in evaluation."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        for module in network.modules()
        if isinstance(module, ACTIVATION_TYPES)
    ]
    try:
        with evaluating(network):
            network(*split.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def moments_of_progress(steps: int, count: int, first: int = 1) -> list[int]:
    """About ``count`` steps from ``first`` to ``steps``, dense at the start: equal ratios apart."""
    ratio = (steps / first) ** (1 / max(count - 1, 1))
    return sorted({round(first * ratio**i) for i in range(count)} | {steps})
