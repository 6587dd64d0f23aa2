"""`evenly.convert` and `evenly.revert`: nothing is lost, everything computes as before."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from benchmarks import networks
from torch import Tensor, nn

import evenly

NETWORKS = {
    "resnet18": (lambda: networks.resnet18(8, 5), (4, 3, 32, 32)),
    "resnet50": (lambda: networks.resnet50(4, 5), (4, 3, 32, 32)),
    "mobilenetv2": (lambda: networks.mobilenetv2(8, 5), (4, 3, 32, 32)),
    "unet": (lambda: networks.UNet(4), (2, 3, 16, 16)),
    "mlp": (lambda: networks.mlp(12, 16, 5), (8, 12)),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A float64 network and an input."""
    make, shape = NETWORKS[request.param]
    return make().double(), torch.randn(shape, dtype=torch.float64)


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and state after two training steps, and the output of evaluation."""
    model.train()
    results = {}
    for step in range(2):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.square().mean().backward()
        results |= {f"y{step}": y.detach(), f"dx{step}": leaf.grad}
    results |= {f"d {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    results |= {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        results["evaluation"] = model.eval()(x)
    return results


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, and values equal up to float64 rounding, which fifty layers of four samples magnify."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-8 * float(value.abs().max()) + 1e-12
        torch.testing.assert_close(actual[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_a_converted_network_computes_the_same(network: tuple[nn.Module, Tensor]) -> None:
    """Outputs, gradients and running statistics are those of the unconverted network."""
    model, x = network
    converted = evenly.convert(copy.deepcopy(model))

    assert any(type(m).__module__.startswith("evenly") for m in converted.modules())
    assert_same(outcome(converted, x), outcome(model, x))


def test_revert_gives_back_every_class_and_setting(network: tuple[nn.Module, Tensor]) -> None:
    """After convert and revert nothing is left: classes, attributes, buffers and results are as before."""
    model, x = network
    back = evenly.revert(evenly.convert(copy.deepcopy(model)))

    for (name, was), (_, now) in zip(model.named_modules(), back.named_modules(), strict=True):
        assert type(now) is type(was), name
        assert vars(now).keys() == vars(was).keys(), name
        assert now._buffers.keys() == was._buffers.keys(), name
    assert_same(outcome(back, x), outcome(model, x))


def family() -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Every torch norm that has an equal of ours, in odd settings, with a shape it takes."""
    return [
        (nn.BatchNorm1d(6, momentum=None), (5, 6)),
        (nn.BatchNorm2d(6, eps=1e-3, affine=False), (3, 6, 4, 4)),
        (nn.BatchNorm2d(6, track_running_stats=False), (3, 6, 4, 4)),
        (nn.BatchNorm3d(6, momentum=0.5), (3, 6, 2, 2, 2)),
        (nn.InstanceNorm1d(6), (3, 6, 5)),
        (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (3, 6, 4, 4)),
        (nn.InstanceNorm3d(6), (3, 6, 2, 2, 2)),
        (nn.GroupNorm(3, 6), (3, 6, 4, 4)),
        (nn.LayerNorm((4, 4), bias=False), (3, 6, 4, 4)),
        (nn.LayerNorm(6, elementwise_affine=False), (3, 6)),
        (nn.RMSNorm(6), (3, 6)),
    ]


@pytest.mark.parametrize("index", range(len(family())), ids=lambda i: repr(family()[i][0]))
def test_every_torch_norm_has_an_equal(index: int) -> None:
    """A norm by itself is converted, computes the same, and comes back."""
    layer, shape = family()[index]
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    torchs, expected = type(layer), outcome(copy.deepcopy(layer), x)

    converted = evenly.convert(layer)

    assert converted is layer
    assert type(layer) is getattr(evenly, torchs.__name__)
    assert_same(outcome(layer, x), expected)
    assert type(evenly.revert(layer)) is torchs


def test_nothing_but_the_class_changes() -> None:
    """Parameters, hooks, sharing, mode, requires_grad and an optimizer's grip on them survive."""
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.Conv2d(4, 4, 1), shared).eval()
    shared.weight.requires_grad_(False)
    seen = []
    shared.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    parameters, keys = list(model.parameters()), list(model.state_dict())

    evenly.convert(model)

    assert all(now is was for now, was in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert model[1] is model[3] is shared
    assert not shared.training
    assert not shared.weight.requires_grad
    model(torch.randn(2, 4, 3, 3))
    assert seen == [(2, 4, 3, 3)] * 2


def test_a_converted_network_can_be_copied_pickled_and_loaded() -> None:
    """deepcopy, pickle and state_dict work as before, and the state of one loads into the other."""
    model = networks.resnet18(4, 3)
    x = torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(model)
    evenly.convert(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)

    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert type(other.bn1) is evenly.BatchNorm2d
        torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())


def test_converting_twice_is_converting_once() -> None:
    """A second convert finds nothing to do; a second revert neither."""
    model = evenly.convert(evenly.convert(networks.mlp(4, 4, 2)))
    assert type(evenly.revert(evenly.revert(model))[1]) is nn.BatchNorm1d


def test_statistics_of_a_half_precision_model_are_widened_and_narrowed() -> None:
    """Under bfloat16 weights our running statistics are float32; revert gives torch what it expects."""
    model = nn.Sequential(nn.BatchNorm1d(4)).bfloat16()

    evenly.convert(model)

    assert model[0].running_mean.dtype == torch.float32
    assert model[0].weight.dtype == torch.bfloat16
    evenly.revert(model)
    assert model[0].running_mean.dtype == torch.bfloat16
    model(torch.randn(3, 4, dtype=torch.bfloat16))


def test_parametrized_norms_are_left_alone_and_named() -> None:
    """A class made by somebody else's machinery is not replaced, and the warning says which and why."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    nn.utils.parametrizations.weight_norm(model[0], dim=None)

    with pytest.warns(UserWarning, match=r"evenly\.convert left as they are: 0 \(parametrized\)\."):
        evenly.convert(model)

    assert type(model[0]) is not evenly.BatchNorm1d
    assert type(model[1]) is evenly.BatchNorm1d


def test_somebody_elses_subclass_is_left_alone_and_named() -> None:
    """A subclass may have a forward of its own: it stays, and so does a lazy layer."""

    class Mine(nn.BatchNorm2d):
        pass

    model = nn.Sequential(Mine(4), nn.LazyBatchNorm2d())
    with pytest.warns(UserWarning, match=r"0 \(.*Mine, not torch\.nn's own class\), 1 \(lazy: call it once first\)"):
        evenly.convert(model)
    assert type(model[0]) is Mine


def test_revert_leaves_what_torch_has_no_layer_for() -> None:
    """A layer built with an activation stays ours, and the warning says what is in the way."""
    model = nn.Sequential(evenly.BatchNorm2d(4, activation="relu"), evenly.BatchNorm(4), evenly.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"0 \(activation='relu'\), 1 \(any rank\)\."):
        evenly.revert(model)
    assert [type(m) for m in model] == [evenly.BatchNorm2d, evenly.BatchNorm, nn.BatchNorm2d]


@pytest.mark.parametrize(("norm", "groups"), [("group:4", 4), ("group", 24), ("layer", 1), ("instance", 24)])
def test_batch_norm_becomes_group_norm(norm: str, groups: int) -> None:
    """The new kind computes torch's group norm with the old weight and bias, and keeps their keys."""
    model = nn.Sequential(nn.BatchNorm2d(24)).double()
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[0].bias)
    x = torch.randn(3, 24, 4, 4, dtype=torch.float64)
    expected = torch.nn.functional.group_norm(x, groups, model[0].weight, model[0].bias)

    evenly.convert(model, norm=norm)

    assert type(model[0]) is evenly.GroupNorm
    torch.testing.assert_close(model(x), expected)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    assert f"GroupNorm({groups}, 24" in repr(model)


def test_group_without_a_number_is_the_largest_divisor_up_to_32() -> None:
    """64 channels get 32 groups, 48 get 24, 7 get 7, 37 get 1."""
    model = nn.Sequential(*(nn.BatchNorm2d(c) for c in (64, 48, 7, 37)))
    evenly.convert(model, norm="group")
    assert [layer.num_groups for layer in model] == [32, 24, 7, 1]


@pytest.mark.parametrize("norm", ["group:2", "layer", "instance", "ghost:2"])
def test_a_kind_can_be_switched_back(norm: str) -> None:
    """Revert brings back the batch norm with the running statistics it had."""
    model = networks.resnet18(4, 3).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model(x)
    expected = copy.deepcopy(model).eval()(x)

    evenly.convert(model, norm=norm)
    model(x)
    model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    statistics_kept = norm != "ghost:2"
    evenly.revert(model)

    assert type(model.bn1) is nn.BatchNorm2d
    assert "_origin" not in vars(model.bn1)
    if statistics_kept:
        torch.testing.assert_close(model.eval()(x), expected)


def test_a_kind_can_be_switched_again() -> None:
    """The second norm= starts from what the layer was at first."""
    model = evenly.convert(nn.Sequential(nn.BatchNorm2d(8)), norm="group:2")
    evenly.convert(model, norm="ghost:4")
    assert type(model[0]) is evenly.BatchNorm2d
    assert model[0].ghosts == 4
    evenly.convert(model, norm="group:4")
    assert model[0].num_groups == 4
    assert type(evenly.revert(model)[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("norm", ["bathc", "group:0", "group:x", "ghost", "layer:2", "group:"])
def test_an_unknown_kind_is_refused(norm: str) -> None:
    """The message lists the known kinds."""
    with pytest.raises(ValueError, match=r"unknown norm .*known are .*ghost:K"):
        evenly.convert(nn.Sequential(nn.BatchNorm2d(4)), norm=norm)


def test_groups_that_do_not_divide_are_refused_before_anything_changes() -> None:
    """The layer, both numbers and the repair are named; the model is untouched."""
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match=r"1: 6 channels cannot split into 4 groups.*\(1, 2, 3, 6\)"):
        evenly.convert(model, norm="group:4")
    assert [type(m) for m in model] == [nn.BatchNorm2d] * 2


def test_a_model_without_norms_passes_silently() -> None:
    """Nothing to do is no reason to warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(nn.Linear(2, 2))
        assert evenly.convert(model) is model


@pytest.mark.parametrize(("norm", "setting"), [("sync", "sync"), ("frozen", "frozen")])
def test_batch_norm_becomes_synchronised_or_frozen(norm: str, setting: str) -> None:
    """A setting of our layer; its class, state and rank check stay, and revert takes it back."""
    model = nn.Sequential(nn.BatchNorm2d(4))
    keys = list(model.state_dict())
    evenly.convert(model, norm=norm)

    assert type(model[0]) is evenly.BatchNorm2d
    assert getattr(model[0], setting) is True
    assert list(model.state_dict()) == keys
    model(torch.randn(2, 4, 3, 3))
    assert int(model[0].num_batches_tracked) == (norm == "sync")
    evenly.revert(model)
    assert vars(model[0]).keys() == vars(nn.BatchNorm2d(4)).keys()


def test_torchs_sync_norm_becomes_ours_and_plain() -> None:
    """torch's SyncBatchNorm turns into ours, into a plain batch norm on request, and back."""
    model = nn.Sequential(nn.SyncBatchNorm(4))
    evenly.convert(model)
    assert type(model[0]) is evenly.SyncBatchNorm
    assert model[0].sync
    model(torch.randn(2, 4, 3, 3))
    evenly.convert(model, norm="batch")
    assert type(model[0]) is evenly.BatchNorm
    assert not model[0].sync
    evenly.revert(model)
    assert type(model[0]) is nn.SyncBatchNorm
    assert vars(model[0]).keys() == vars(nn.SyncBatchNorm(4)).keys()
