"""The lists of shapes are those of the networks they are named after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from benchmarks import networks
from torch import nn

from evenly.bench.shapes import LISTS, Case, cases


def norms_of(model: nn.Module, shape: tuple[int, ...]) -> Counter[tuple[int, ...]]:
    """Input shapes of all batch norms in one forward."""
    found: Counter[tuple[int, ...]] = Counter()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, inputs, output: found.update([tuple(inputs[0].shape)]))
    with torch.no_grad():
        model.to("meta")(torch.empty(shape, device="meta"))
    return found


@pytest.mark.parametrize(("name", "make"), [("resnet50", networks.resnet50), ("mobilenetv2", networks.mobilenetv2)])
def test_a_list_is_what_the_network_runs(name: str, make: Callable[[], nn.Module]) -> None:
    """Shapes and multiplicities are those seen by the norms of the network itself at 224 pixels."""
    listed = Counter({case.shape: case.times for case in cases(name, batch=2)})
    assert listed == norms_of(make(), (2, 3, 224, 224))


def test_resnet50_has_53_norms_and_16_residuals() -> None:
    """One residual at the end of each of the 16 bottlenecks."""
    assert sum(case.times for case in cases("resnet50")) == 53
    ends = cases("resnet50", residual=True)
    assert sum(case.times for case in ends) == 16
    assert all(case.residual for case in ends)


@pytest.mark.parametrize("name", LISTS)
def test_every_list_can_be_made(name: str) -> None:
    """Each case has positive sizes, a label and a size in bytes that follows its type."""
    for case in cases(name, dtype="bfloat16"):
        assert min(case.shape) > 0
        assert str(case.shape[0]) in case.label
        assert case.bytes == 2 * torch.Size(case.shape).numel()


def test_channels_last_is_for_images_and_volumes() -> None:
    """Rows drop out of a list in channels last; volumes are laid out so."""
    assert cases("dense", layout="last") == []
    x = cases("unet3d", layout="last", batch=1)[-1].tensor(torch.Generator())
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_unknown_lists_and_batches_that_do_not_fit_are_refused() -> None:
    """The message lists what is known."""
    with pytest.raises(ValueError, match=r"unknown list of shapes 'resnet'; known are resnet50, mobilenetv2"):
        cases("resnet")
    with pytest.raises(ValueError, match=r"the shapes of 'small' are fixed; batch=3 goes with resnet50"):
        cases("small", batch=3)


def test_numbers_have_the_mean_asked_for() -> None:
    """Standard deviation 1 around the mean."""
    x = Case("batch", (64, 64)).tensor(torch.Generator(), mean=1e4)
    assert abs(float(x.double().mean()) - 1e4) < 0.1
    assert abs(float(x.double().std()) - 1) < 0.05
