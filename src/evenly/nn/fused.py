"""Activation and residual: what every layer of the family takes besides its own arguments."""

from __future__ import annotations

from typing import Any

from evenly.core.activation import Activation


class Fused:
    """The settings of an activation fused into a layer (a mixin)."""

    activation: str | None
    activation_args: tuple[float, ...]

    def _set_activation(self, activation: str | None, activation_args: tuple[float, ...]) -> None:
        Activation.of(activation, activation_args)  # refuses at construction what would fail in forward
        self.activation = activation
        self.activation_args = tuple(activation_args)

    def _fusion(self) -> dict[str, Any]:
        return {"activation": self.activation, "activation_args": self.activation_args}

    def _extra_repr(self, torchs: str) -> str:
        if self.activation is None:
            return torchs
        args = f", activation_args={self.activation_args}" if self.activation_args else ""
        return f"{torchs}, activation={self.activation!r}{args}"
