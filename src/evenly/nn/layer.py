"""What every layer of the family has besides its torch.nn class: an activation, settings, and being one leaf."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from evenly.core.activation import Activation
from evenly.nn.settings import Settings, known, with_activation


class Fused:
    """The settings of a fused activation, and weight and bias one by one (a mixin).

    Every extra has its default on the class, so that an instance made by torch.nn works after
    its ``__class__`` was changed (see `evenly.nn.tracked.adopt`).
    """

    activation: str | None = None
    activation_args: tuple[float, ...] = ()
    weight_init: float = 1.0
    bias_init: float = 0.0

    _asked: ClassVar[Any]  # a function that reads the arguments that `_make_settings` is made of

    def _make_settings(self) -> Settings:
        raise NotImplementedError

    def _settings(self, then: Activation | None = None) -> Settings:
        """What the layer's arguments come to now, with the activation that a call brings, if it brings one."""
        if torch.compiler.is_compiling():
            settings = self._make_settings()
        else:
            asked = type(self)._asked
            settings = known((asked, asked(self)), self._make_settings)
        return settings if then is None else with_activation(settings, then)

    def _set_activation(self, activation: str | None, activation_args: tuple[float, ...]) -> None:
        Activation.of(activation, activation_args)  # refuses at construction what would fail in forward
        self.activation = activation
        self.activation_args = tuple(activation_args)

    def _set_affine(self, *, scale: bool, bias: bool, weight_init: float, bias_init: float) -> None:
        """Leave out weight or bias where not wanted, and start them elsewhere than at 1 and 0."""
        assert isinstance(self, nn.Module)
        if not scale:
            self.register_parameter("weight", None)
        if not bias:
            self.register_parameter("bias", None)
        self.weight_init, self.bias_init = weight_init, bias_init
        self._start_affine()

    def _start_affine(self) -> None:
        """Weight and bias at their initial values, where these are not torch's."""
        weight: Tensor | None = getattr(self, "weight", None)
        bias: Tensor | None = getattr(self, "bias", None)
        if weight is not None and self.weight_init != 1.0:
            nn.init.constant_(weight, self.weight_init)
        if bias is not None and self.bias_init != 0.0:
            nn.init.constant_(bias, self.bias_init)

    def reset_parameters(self) -> None:
        """Weight, bias (and running statistics) at their initial values."""
        super().reset_parameters()  # type: ignore[misc]  # a mixin: torch's class comes next
        self._start_affine()

    def _described(self, torchs: str, *names: str) -> str:
        """torch's ``extra_repr``, and those of ``names`` that are not at the class's default."""
        text = torchs
        for name in ("activation", "activation_args", "weight_init", "bias_init", *names):
            value = getattr(self, name)
            if value != getattr(type(self), name):
                text += f", {name}={value!r}"
        return text


def state_of(module: nn.Module, *names: str) -> Any:
    """Parameters and buffers of ``module``, in a third of the time that ``module.name`` takes.

    Where somebody keeps one elsewhere (a parametrization, a replica), it is asked for the usual way.
    """
    parameters, buffers = module._parameters, module._buffers
    return [
        parameters[name] if name in parameters else buffers[name] if name in buffers else getattr(module, name)
        for name in names
    ]


def traced(input: object) -> bool:
    """Whether ``input`` stands for a tensor in a torch.fx trace.

    A tracer calls leaf what lives in ``torch.nn``; ours do not, so their forward is entered, finds a
    proxy in place of a tensor, and writes the leaf itself.
    """
    return isinstance(input, Proxy)


def leaf(module: nn.Module, input: Any, **extras: Any) -> Tensor:
    """One ``call_module`` node for ``module``, with those extras that were given."""
    path = input.tracer.path_of_module(module)
    given = {name: value for name, value in extras.items() if value is not None}
    node: Tensor = input.tracer.create_proxy("call_module", path, (input,), given)
    return node
