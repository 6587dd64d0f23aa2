"""The worked example: a three-layer network, 30 samples, batches of 5, one epoch, every number kept.

The first layer and its inputs start as whole numbers with standard deviation 4, so the first batch
can be checked in the head, and every later one with a pocket calculator from the numbers it lists.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenly.lab.explain_records import Epoch, Later, Layer, Prediction, Second, Step
from evenly.nn.batchnorm import BatchNorm1d

__all__ = ["Epoch", "Later", "Layer", "Prediction", "Second", "Step", "epoch", "later", "target"]

MOMENTUM = 0.1
RATE = 0.25
# Six batches of five samples of two whole numbers.
BATCHES = (
    ((3, 2), (3, 4), (2, 7), (10, 3), (7, 9)),
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
        return self.way(x)[-1]

    def way(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``z`` and ``out`` of the first layer, of the second, and the answers."""
        z1 = self.linear1(x)
        out1 = self.norm1(z1)
        z2 = self.linear2(out1)
        out2 = self.norm2(z2)
        return z1, out1, z2, out2, self.last(out2).flatten()


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
        ([15.0, -3.0], [4.0, 4.0])
    """
    model = Network(average).train()
    steps = [_step(model, batch) for batch in BATCHES]
    return Epoch(steps, _predict(model), model.norm1.eps)


def later(epochs: Sequence[int]) -> list[Later]:
    """Train on over the same six batches and look at the network after each of ``epochs``, ascending."""
    model = Network().train()
    samples = [sample for batch in BATCHES for sample in batch]
    x, y = _tensor(samples), _tensor([target(sample) for sample in samples])
    found = []
    for done in range(1, max(epochs) + 1):
        for batch in BATCHES:
            _step(model, batch)
        if done in epochs:
            with torch.no_grad():
                answers, answer = model.eval()(x), model(_tensor([ASKED]))
            right = int(((answers > 0.5) == (y > 0.5)).sum())
            mean = model.norm1.running_mean
            found.append(Later(done, _list(mean), answer.item(), F.mse_loss(answers, y).item(), right))
            model.train()
    return found


def _step(model: Network, batch: tuple[tuple[int, int], ...]) -> Step:
    norm = model.norm1
    parameters = dict(model.named_parameters())
    before = {name: value.tolist() for name, value in parameters.items()}
    z, out, z2, out2, answers = model.way(_tensor(batch))
    loss = F.mse_loss(answers, _tensor([target(sample) for sample in batch]))
    out_grad, z_grad, *found = torch.autograd.grad(loss, [out, z, *parameters.values()])
    gradients = {name: gradient.tolist() for name, gradient in zip(parameters, found, strict=True)}
    with torch.no_grad():
        for parameter, gradient in zip(parameters.values(), found, strict=True):
            parameter.sub_(RATE * gradient)
    mean, std, xhat = _normalized(z, norm.eps)
    return Step(
        inputs=batch,
        linear_weight=before["linear1.weight"],
        linear_bias=before["linear1.bias"],
        z=z.tolist(),
        mean=mean,
        std=std,
        xhat=xhat,
        weight=before["norm1.weight"],
        bias=before["norm1.bias"],
        out=out.tolist(),
        answers=answers.tolist(),
        loss=loss.item(),
        out_grad=out_grad.tolist(),
        z_grad=z_grad.tolist(),
        second=Second(
            z2.tolist(), *_normalized(z2, norm.eps), out2.tolist(),
            _list(model.norm2.running_mean), _list(model.norm2.running_var),
        ),
        parameters=before,
        gradients=gradients,
        linear_weight_grad=gradients["linear1.weight"],
        linear_bias_grad=gradients["linear1.bias"],
        weight_grad=gradients["norm1.weight"],
        bias_grad=gradients["norm1.bias"],
        running_mean=_list(norm.running_mean),
        running_var=_list(norm.running_var),
    )  # fmt: skip


def _normalized(z: Tensor, eps: float) -> tuple[list[float], list[float], list[list[float]]]:
    """Mean and biased standard deviation over the batch, and ``xhat``."""
    z = z.detach()
    mean, var = z.mean(0), z.var(0, correction=0)
    return mean.tolist(), var.sqrt().tolist(), ((z - mean) / (var + eps).sqrt()).tolist()


def _list(running: Tensor | None) -> list[float]:
    assert running is not None  # these norms track running statistics
    values: list[float] = running.tolist()
    return values


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
