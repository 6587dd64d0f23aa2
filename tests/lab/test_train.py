"""Training: deterministic, the same with and without a norm, watched without a trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import evenly
from evenly.lab.data import load
from evenly.lab.networks import NORMS, build, factory
from evenly.lab.setting import Setting
from evenly.lab.train import accuracy, activation_inputs, batches, moments_of_progress, trained, training

DIGITS = load("digits")
SHORT = Setting(data="digits", norm="batch", steps=5, width=12)


def test_same_seed_same_bits() -> None:
    """A cell run twice gives the same weights to the last bit, and another seed gives others."""
    first, again, other = (trained(SHORT, seed, DIGITS) for seed in (1, 1, 2))

    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_norm_changes_nothing_else() -> None:
    """With and without a norm a seed gives the same initial weights."""
    with_norm, without = (build(Setting(data="digits", norm=norm), DIGITS, 3) for norm in ("batch", "none"))
    linears = [[m.weight for m in net.modules() if isinstance(m, nn.Linear)] for net in (with_norm, without)]

    assert len(linears[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*linears, strict=True))


def test_watching_leaves_no_trace() -> None:
    """A network evaluated and probed at every step ends exactly as one left alone."""
    watched = None
    for _, watched in training(SHORT, 0, DIGITS, range(6)):
        accuracy(watched, DIGITS.test)
        activation_inputs(watched, DIGITS.test)
    alone = trained(SHORT, 0, DIGITS)

    assert watched is not None
    assert watched.training
    for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_training_leaves_the_global_seed_alone() -> None:
    """The caller's random numbers are the same, whether or not a network was trained in between."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained(SHORT, 0, DIGITS)

    assert torch.equal(torch.rand(1), expected)


def test_epochs_visit_each_sample_once() -> None:
    """Batches of one epoch do not overlap; the uneven rest is left out."""
    stream = batches(replace(DIGITS.train, y=torch.arange(len(DIGITS.train))), 100, seed=0)
    epoch = torch.cat([next(stream).y for _ in range(len(DIGITS.train) // 100)])

    assert len(epoch.unique()) == len(epoch) == len(DIGITS.train) // 100 * 100


def test_a_normalised_network_learns_digits() -> None:
    """Two hundred steps take a small network from chance to more than nine in ten."""
    setting = Setting(data="digits", norm="batch", steps=200, width=32, depth=1)
    reached = [accuracy(network, DIGITS.test) for _, network in training(setting, 0, DIGITS, [0, 200])]

    assert reached[0] < 0.3
    assert reached[1] > 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_builds_for_pictures(norm: str) -> None:
    """Each norm of the list stands in a convolutional network and answers with one score per class."""
    setting = Setting(data="digits", network="convolutional", norm=norm, width=8, ghosts=2)
    network = build(setting, DIGITS, 0)

    assert network(DIGITS.train.x[:6]).shape == (6, 10)


def test_activation_inputs_are_what_enters() -> None:
    """The probe sees one tensor per activation: here the norm's own outputs."""
    network = build(SHORT, DIGITS, 0)
    seen = activation_inputs(network, DIGITS.test)
    expected = network.eval()[:3](DIGITS.test.x)

    assert len(seen) == SHORT.depth
    torch.testing.assert_close(seen[0], expected)


def test_recurrent_network_ignores_what_follows_the_end() -> None:
    """Padding beyond a sequence's end changes neither its scores nor, with masks, the statistics."""
    vowels = load("vowels")
    some = vowels.train.take(torch.arange(8))
    dirty = replace(some, x=some.x.clone())
    for i, length in enumerate(some.lengths.tolist()):
        dirty.x[i, length:] = 1e3
    networks = [build(Setting(data="vowels", network="recurrent", norm="batch", width=6), vowels, 0) for _ in "ab"]
    for network, split in zip(networks, (some, dirty), strict=True):
        network(*split.inputs)

    for a, b in zip(networks[0].state_dict().values(), networks[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(networks[0].eval()(*some.inputs), networks[0](*dirty.inputs))


def test_progress_is_dense_at_the_start() -> None:
    """Steps grow by a constant ratio and end with the last."""
    steps = moments_of_progress(1000, 10)

    assert steps[0] == 1
    assert steps[-1] == 1000
    assert all(b - a <= d - c for a, b, c, d in zip(steps, steps[1:], steps[1:], steps[2:], strict=False))


def own_network() -> nn.Module:
    """A network as a user might bring it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def test_own_network_with_and_without_its_norms() -> None:
    """The user's network trains as built, and with its norms taken out."""
    path = f"{__name__}:own_network"
    with_norm, without = (build(Setting(network=path, norm=norm), DIGITS, 0) for norm in ("batch", "none"))

    assert isinstance(with_norm[2], evenly.BatchNorm1d)
    assert isinstance(without[2], nn.Identity)
    assert torch.equal(with_norm[1].weight, without[1].weight)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere:net", "cannot import nowhere"),
        ("math:nothing", "no function nothing"),
        ("noseparator", "MODULE:FACTORY"),
    ],
)
def test_factory_refuses(path: str, message: str) -> None:
    """A wrong MODULE:FACTORY is named, with what to type instead."""
    with pytest.raises(ValueError, match=message):
        factory(path)
