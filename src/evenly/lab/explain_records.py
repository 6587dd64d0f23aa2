"""What is kept of the worked example: one record for a batch, a layer, the prediction, the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Second:
    """What one batch becomes in the second hidden layer; the fields are those of `Step`."""

    z: list[list[float]]
    mean: list[float]
    std: list[float]
    xhat: list[list[float]]
    out: list[list[float]]
    running_mean: list[float]
    running_var: list[float]


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
        answers: of the network, one a sample.
        loss: mean squared error of the answers.
        out_grad: gradient of ``out``, as it comes from the layers above.
        z_grad: gradient of ``z``: what the norm's backward makes of it.
        second: the same five samples in the second hidden layer.
        parameters: every parameter before the step, by name.
        gradients: of every parameter, by name.
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
    answers: list[float]
    loss: float
    out_grad: list[list[float]]
    z_grad: list[list[float]]
    second: Second
    parameters: dict[str, list[Any]]
    gradients: dict[str, list[Any]]
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


@dataclass(frozen=True)
class Later:
    """How the example stands after so many epochs.

    Args:
        epochs: trained so far.
        running_mean: of the first layer.
        answer: of the asked sample alone, in evaluation mode.
        loss: mean squared error of all thirty in evaluation mode.
        right: samples of the thirty whose answer is nearer to their target than to the other one.
    """

    epochs: int
    running_mean: list[float]
    answer: float
    loss: float
    right: int
