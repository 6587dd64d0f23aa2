"""The worked example: a three-layer network, 30 samples, batches of 5, one epoch, every number kept.

The first layer and its inputs start as whole numbers with standard deviation 2, so the first batch
can be checked in the head, and every later one with a pocket calculator from the numbers it lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM = 0.1
RATE = 0.25
# Six batches of five samples of two whole numbers.
BATCHES = (
    ((4, 3), (3, 6), (5, 5), (7, 4), (6, 7)),
    ((6, 5), (9, 4), (8, 6), (6, 9), (10, 7)),
    ((3, 3), (3, 5), (4, 5), (3, 7), (7, 5)),
    ((4, 2), (2, 8), (6, 6), (10, 4), (8, 10)),
    ((5, 0), (4, 3), (5, 3), (6, 3), (4, 7)),
    ((6, 4), (5, 7), (7, 6), (7, 7), (10, 6)),
)
ASKED = (6, 5)  # the sample whose prediction ends the example; also the first of the second batch


def target(sample: tuple[int, int]) -> float:
    """What the network learns to answer: 1 where the first number is the larger, else 0."""
    return float(sample[0] > sample[1])


@dataclass(frozen=True)
class Step:
    """One batch on its way through the first layer and its norm; a list has one number a neuron.

    Args:
        inputs: the five samples.
        linear_weight: of the first layer, before the step; one row a neuron.
        linear_bias: of the first layer, before the step: the redundant one.
        z: pre-activations, one row a sample.
        mean: of ``z`` over the batch.
        std: of ``z`` over the batch, biased, by which a norm divides.
        xhat: ``(z - mean) / sqrt(std**2 + eps)``, one row a sample.
        weight: of the norm, before the step.
        bias: of the norm, before the step.
        out: ``max(0, weight * xhat + bias)``, one row a sample.
        loss: mean squared error of the network's answers.
        linear_weight_grad: gradient of ``linear_weight``.
        linear_bias_grad: gradient of ``linear_bias``: zero.
        weight_grad: gradient of ``weight``.
        bias_grad: gradient of ``bias``.
        running_mean: after the step.
        running_var: after the step.
    """

    inputs: tuple[tuple[int, int], ...]
    linear_weight: list[list[float]]
    linear_bias: list[float]
    z: list[list[float]]
    mean: list[float]
    std: list[float]
    xhat: list[list[float]]
    weight: list[float]
    bias: list[float]
    out: list[list[float]]
    loss: float
    linear_weight_grad: list[list[float]]
    linear_bias_grad: list[float]
    weight_grad: list[float]
    bias_grad: list[float]
    running_mean: list[float]
    running_var: list[float]


@dataclass(frozen=True)
class Layer:
    """A hidden layer as it stands after the epoch, and what the asked sample becomes in it."""

    linear_weight: list[list[float]]
    linear_bias: list[float]
    running_mean: list[float]
    running_var: list[float]
    weight: list[float]
    bias: list[float]
    z: list[float]
    xhat: list[float]
    out: list[float]


@dataclass(frozen=True)
class Prediction:
    """The asked sample, predicted in evaluation and in training mode.

    Args:
        layers: its way through the two hidden layers in evaluation mode.
        last_weight: weight of the output layer.
        last_bias: bias of the output layer.
        alone: the answer when it is the only sample.
        among: the answer inside each of the six batches, where it takes the place of the first sample.
        among_all: the answer in one batch with all thirty.
        training: the answers inside the six batches in training mode, which depend on the company.
    """

    layers: list[Layer]
    last_weight: list[float]
    last_bias: float
    alone: float
    among: list[float]
    among_all: float
    training: list[float]


@dataclass(frozen=True)
class Epoch:
    """Six steps and the prediction of one sample after them."""

    steps: list[Step]
    prediction: Prediction
    eps: float


def network() -> nn.Sequential:
    """The network at its start: two hidden layers of two neurons, each with a norm and ReLU, and one output."""
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()),
        nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()),
        nn.Linear(2, 1),
    ).double()  # fmt: skip
    start = (([[1, 1], [1, -1]], [5, -3]), ([[1, 1], [-1, 1]], [0, 0]), ([[0.5, 0.5]], [0]))
    with torch.no_grad():
        for layer, (weight, bias) in zip((model[0], model[2], model[4]), start, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return model


def epoch() -> Epoch:
    """Train one epoch with plain gradient descent and keep every number of the first layer.

    Example:
        >>> first = epoch().steps[0]
        >>> first.mean, first.std
        ([15.0, -3.0], [2.0, 2.0])
    """
    model = network().train()
    steps = [_step(model, batch) for batch in BATCHES]
    return Epoch(steps, _predict(model), model[1].eps)
