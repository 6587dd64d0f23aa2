"""What every layer of the family takes besides its own arguments: an activation, and how it starts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from evenly.core.activation import IDENTITY, Activation


def activation_of(name: str | None, args: tuple[float, ...] = ()) -> Activation:
    """`Activation.of`, remembered: a layer asks at every call."""
    known = _KNOWN.get((name, args))
    if known is None:
        known = _KNOWN[name, args] = Activation.of(name, args)
    return known


_KNOWN: dict[tuple[str | None, tuple[float, ...]], Activation] = {(None, ()): IDENTITY}


class Fused:
    """The settings of a fused activation, and weight and bias one by one (a mixin).

    Every extra has its default on the class, so that an instance made by torch.nn works after
    its ``__class__`` was changed (see `evenly.nn.tracked.adopt`).
    """

    activation: str | None = None
    activation_args: tuple[float, ...] = ()
    weight_init: float = 1.0
    bias_init: float = 0.0

    def _set_activation(self, activation: str | None, activation_args: tuple[float, ...]) -> None:
        Activation.of(activation, activation_args)  # refuses at construction what would fail in forward
        self.activation = activation
        self.activation_args = tuple(activation_args)

    def _activation(self, then: Activation | None = None) -> Activation:
        """The layer's own activation, unless the call brings one."""
        return activation_of(self.activation, tuple(self.activation_args)) if then is None else then

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

    def _fusion(self) -> dict[str, Any]:
        return {"activation": self.activation, "activation_args": self.activation_args}

    def _described(self, torchs: str, *names: str) -> str:
        """torch's ``extra_repr``, and those of ``names`` that are not at the class's default."""
        text = torchs
        for name in ("activation", "activation_args", "weight_init", "bias_init", *names):
            value = getattr(self, name)
            if value != getattr(type(self), name):
                text += f", {name}={value!r}"
        return text
