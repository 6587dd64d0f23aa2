"""Faults of torch's layers, measured today: when one of these fails, torch has mended it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion

import evenly


@pytest.mark.precise
def test_a_large_constant() -> None:
    """Constant input 1e7: torch's x * a + b gives about -105 in place of 0."""
    x = torch.full((4, 2, 3, 3), 1e7)

    assert nn.BatchNorm2d(2)(x).abs().max() > 50
    assert evenly.BatchNorm2d(2)(x).abs().max() == 0


@pytest.mark.precise
def test_a_large_constant_in_evaluation() -> None:
    """The same with given statistics."""
    torchs, ours = nn.BatchNorm2d(2).eval(), evenly.BatchNorm2d(2).eval()
    for layer in (torchs, ours):
        layer.running_mean.fill_(1e7)
        layer.running_var.zero_()
    x = torch.full((4, 2, 3, 3), 1e7)

    assert torchs(x).abs().max() > 50
    assert ours(x).abs().max() == 0


@pytest.mark.precise
def test_channels_last_accuracy() -> None:
    """At mean 1e4 torch's channels-last kernel loses 7 to 58 times the accuracy of its own NCHW kernel."""
    x = (torch.randn(8, 16, 28, 28) + 1e4).contiguous(memory_format=torch.channels_last)
    exact = nn.BatchNorm2d(16, dtype=torch.float64)(x.double())

    def error(layer: nn.Module) -> float:
        return (layer(x).double() - exact).abs().max().item()

    torchs = error(nn.BatchNorm2d(16))
    ours = error(evenly.BatchNorm2d(16))
    contiguous = (nn.BatchNorm2d(16)(x.contiguous()).double() - exact).abs().max().item()
    assert torchs > 4 * contiguous
    assert ours < 1.5 * contiguous


def test_instance_norm_loses_channels_last() -> None:
    """torch's output is contiguous whatever came in; ours keeps the format."""
    x = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)

    assert not nn.InstanceNorm2d(4)(x).is_contiguous(memory_format=torch.channels_last)
    assert evenly.InstanceNorm2d(4)(x).is_contiguous(memory_format=torch.channels_last)


def test_converters_drop_hooks() -> None:
    """convert_sync_batchnorm rebuilds a layer that stands twice into two, without its hooks."""
    norm = nn.BatchNorm1d(3)
    norm.register_forward_hook(lambda *_: None)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.ModuleList([norm, norm]))

    assert converted[0] is not converted[1]
    assert not converted[0]._forward_hooks


def test_fusing_a_norm_without_weights() -> None:
    """torch's fuse_linear_bn crashes for affine=False."""
    with pytest.raises((AttributeError, TypeError)):
        fusion.fuse_linear_bn_eval(nn.Linear(3, 4).eval(), nn.BatchNorm1d(4, affine=False).eval())


def test_mixed_half_parameters() -> None:
    """torch refuses bfloat16 weights beside float32 statistics; ours is that layer after `.bfloat16()`."""
    x = torch.randn(4, 3).bfloat16()
    weight = torch.ones(3).bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        nn.functional.batch_norm(x, torch.zeros(3), torch.ones(3), weight, weight, True)

    assert evenly.BatchNorm1d(3).bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_cumulative_average_in_one_graph() -> None:
    """momentum=None is refused of torch's layer (pytorch#194504); ours is whole (see test_compile)."""
    torch.compiler.reset()
    graph = torch.compile(nn.BatchNorm1d(3, momentum=None), backend="eager", fullgraph=True)

    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        graph(torch.randn(4, 3))


def test_a_wrong_number_of_channels() -> None:
    """torch speaks of a running_mean of the wrong size; ours names the rule and both numbers."""
    x = torch.randn(4, 5)
    with pytest.raises(RuntimeError, match="running_mean should contain 5 elements"):
        nn.BatchNorm1d(3)(x)
    with pytest.raises(ValueError, match=r"shape \(3,\).*has 5 channels"):
        evenly.BatchNorm1d(3)(x)


def test_update_bn_forgets_which_layers_were_frozen() -> None:
    """torch's update_bn overwrites the statistics of a layer that was put in eval(); a frozen one of ours stays."""
    theirs, ours = nn.BatchNorm1d(1).eval(), evenly.BatchNorm1d(1)
    ours.frozen = True
    batches = [torch.full((4, 1), 5.0)]

    for layer in (theirs, ours):
        torch.optim.swa_utils.update_bn(batches, nn.Sequential(layer))

    assert theirs.running_mean.item() == 5.0
    assert ours.num_batches_tracked == 0
    assert ours.running_mean.item() == 0.0


def test_update_bn_weighs_a_small_batch_like_a_full_one() -> None:
    """Two samples in the last batch count as much as 100 in the first."""
    model = nn.Sequential(nn.BatchNorm1d(1))

    torch.optim.swa_utils.update_bn([torch.zeros(100, 1), torch.ones(2, 1)], model)

    assert model[0].running_mean.item() == pytest.approx(0.5)


def test_fusing_a_grouped_transposed_convolution_crashes() -> None:
    """torch's fuse_conv_bn_eval shapes the scale wrongly for it; with one group it is right."""
    norm = nn.BatchNorm2d(6).eval()
    x = torch.randn(2, 4, 5, 5)

    whole = nn.ConvTranspose2d(4, 6, 3).eval()
    torch.testing.assert_close(fusion.fuse_conv_bn_eval(whole, norm, transpose=True)(x), norm(whole(x)))
    with pytest.raises(RuntimeError):
        fusion.fuse_conv_bn_eval(nn.ConvTranspose2d(4, 6, 3, groups=2).eval(), norm, transpose=True)
