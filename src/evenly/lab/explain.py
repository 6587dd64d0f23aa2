"""The worked example: a three-layer network, 30 samples, batches of 5, one epoch, every number kept.

The first layer and its inputs start as whole numbers with standard deviation 2, so the first batch
can be checked in the head, and every later one with a pocket calculator from the numbers it lists.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenly.nn.batchnorm import BatchNorm1d

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


class Network(nn.Module):
    """Two hidden layers of two neurons, each with a norm and ReLU, and one output."""

    def __init__(self, average: str = "ema") -> None:
        super().__init__()
        norm = partial(BatchNorm1d, 2, momentum=MOMENTUM, average=average, activation="relu")
        self.linear1, self.norm1 = nn.Linear(2, 2), norm()
        self.linear2, self.norm2 = nn.Linear(2, 2), norm()
        self.last = nn.Linear(2, 1)
        self.double()
        with torch.no_grad():
            _set(self.linear1, [[1, 1], [1, -1]], [5, -3])
            _set(self.linear2, [[1, 1], [-1, 1]], [0, 0])
            _set(self.last, [[0.5, 0.5]], [0])

    def forward(self, x: Tensor) -> Tensor:
        """One answer for each sample."""
        return self.after_first(self.norm1(self.linear1(x)))

    def after_first(self, out: Tensor) -> Tensor:
        """The answers from the first norm's output on."""
        answers: Tensor = self.last(self.norm2(self.linear2(out)))
        return answers.flatten()


def _set(linear: nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    linear.weight.copy_(torch.tensor(weight))
    linear.bias.copy_(torch.tensor(bias))


def epoch(average: str = "ema") -> Epoch:
    """Train one epoch with plain gradient descent and keep every number of the first layer.

    Args:
        average: the running average of the norms, ``"ema"`` or ``"debiased"``.

    Example:
        >>> first = epoch().steps[0]
        >>> first.mean, first.std
        ([15.0, -3.0], [2.0, 2.0])
    """
    model = Network(average).train()
    steps = [_step(model, batch) for batch in BATCHES]
    return Epoch(steps, _predict(model), model.norm1.eps)


def _step(model: Network, batch: tuple[tuple[int, int], ...]) -> Step:
    linear, norm = model.linear1, model.norm1
    before = {name: value.tolist() for name, value in model.state_dict().items()}
    z = linear(_tensor(batch))
    out = norm(z)
    loss = F.mse_loss(model.after_first(out), _tensor([target(sample) for sample in batch]))
    parameters = dict(model.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    mean, var = z.detach().mean(0), z.detach().var(0, correction=0)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.sub_(RATE * gradients[name])
    after = model.state_dict()
    return Step(
        inputs=batch,
        linear_weight=before["linear1.weight"],
        linear_bias=before["linear1.bias"],
        z=z.tolist(),
        mean=mean.tolist(),
        std=var.sqrt().tolist(),
        xhat=((z - mean) / (var + norm.eps).sqrt()).tolist(),
        weight=before["norm1.weight"],
        bias=before["norm1.bias"],
        out=out.tolist(),
        loss=loss.item(),
        linear_weight_grad=gradients["linear1.weight"].tolist(),
        linear_bias_grad=gradients["linear1.bias"].tolist(),
        weight_grad=gradients["norm1.weight"].tolist(),
        bias_grad=gradients["norm1.bias"].tolist(),
        running_mean=after["norm1.running_mean"].tolist(),
        running_var=after["norm1.running_var"].tolist(),
    )


@torch.no_grad()
def _predict(model: Network) -> Prediction:
    asked = _tensor([ASKED])
    company = [torch.cat([asked, _tensor(batch[1:])]) for batch in BATCHES]
    # Copies, because a forward in training mode would move the running statistics.
    training = [copy.deepcopy(model).train()(batch)[0].item() for batch in company]
    model.eval()
    state = model.state_dict()
    layers, x = [], asked
    for k, linear, norm in ((1, model.linear1, model.norm1), (2, model.linear2, model.norm2)):
        mean, var = state[f"norm{k}.running_mean"], state[f"norm{k}.running_var"]
        z = linear(x)
        x = norm(z)
        layers.append(
            Layer(
                linear_weight=state[f"linear{k}.weight"].tolist(),
                linear_bias=state[f"linear{k}.bias"].tolist(),
                running_mean=mean.tolist(),
                running_var=var.tolist(),
                weight=state[f"norm{k}.weight"].tolist(),
                bias=state[f"norm{k}.bias"].tolist(),
                z=z[0].tolist(),
                xhat=((z - mean) / (var + norm.eps).sqrt())[0].tolist(),
                out=x[0].tolist(),
            )
        )
    return Prediction(
        layers=layers,
        last_weight=model.last.weight[0].tolist(),
        last_bias=model.last.bias.item(),
        alone=model(asked).item(),
        among=[model(batch)[0].item() for batch in company],
        among_all=model(torch.cat(company))[0].item(),
        training=training,
    )


def _tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
