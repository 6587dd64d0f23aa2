"""Activations and their parameters."""

from __future__ import annotations

import pytest

from evenly.core.activation import KINDS, Activation


def test_missing_parameters_are_torchs_defaults() -> None:
    """leaky_relu has slope 0.01, elu has alpha 1."""
    assert Activation.of("leaky_relu").arg == 0.01
    assert Activation.of("elu").arg == 1.0
    assert Activation.of("elu", (0.5,)).arg == 0.5


def test_numbers_are_distinct() -> None:
    """The kernels tell activations apart by number."""
    assert sorted(kind.number for kind in KINDS.values()) == list(range(len(KINDS)))


def test_only_strictly_monotonic_activations_are_invertible() -> None:
    """leaky_relu is invertible with a positive slope only."""
    assert Activation.of(None).invertible
    assert Activation.of("leaky_relu", (0.2,)).invertible
    assert not Activation.of("leaky_relu", (0.0,)).invertible
    assert not Activation.of("relu").invertible


def test_an_unknown_activation_is_refused() -> None:
    """The error lists what there is."""
    with pytest.raises(ValueError, match=r"unknown activation 'swish'; known are None, \"relu\".*\"gelu\""):
        Activation.of("swish")


def test_too_many_parameters_are_refused() -> None:
    """The error says what the activation takes."""
    with pytest.raises(ValueError, match="'relu' takes no parameter"):
        Activation.of("relu", (1.0,))
