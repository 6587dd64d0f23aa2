"""Findings from a checkpoint alone: each fault is planted in a real network, found, named and cured."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch
from tests.tools import nets
from torch import nn
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.tools import rules
from evenly.tools.stored import layers_of
from evenly.tools.walk import batch_norms
from evenly.tools.xray import look, xray


def _found(model):
    return {f.rule: f for f in xray(model.state_dict()).findings}


def _train_steps(model, number, x=None):
    x = nets.digits()[0] if x is None else x
    model.train()
    with torch.no_grad():
        for i in range(number):
            model(x[(i % 20) * 64 : (i % 20) * 64 + 64])
    return model.eval()


def _recalibrate(model):
    evenly.recalibrate(model, nets.batches(4))


def _set(norm, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(norm, name).copy_(torch.as_tensor(value))


def _nan_batch(model):
    model.train()
    model(torch.full((8, 1, 8, 8), torch.nan))


def _new_layer(model):
    model.layer2[0].bn1 = nn.BatchNorm2d(16)


def _zero_momentum(model):
    """Trained for a while with a momentum of 0."""
    for _, norm in batch_norms(model):
        norm.reset_running_stats()
        norm.momentum = 0.0
    _train_steps(model, 3)


def _checkpointed(model):
    """Two stages under activation checkpointing, counters from new, for forty steps."""
    for _, norm in batch_norms(model):
        norm.reset_running_stats()
    model.train()
    x = nets.digits()[0]
    for i in range(40):
        h = torch.relu(model.bn1(model.conv1(x[i * 32 : i * 32 + 32])))
        h = checkpoint(model.layer1, h, use_reentrant=False)
        model.fc(model.layer2(h).mean((2, 3))).sum().backward()
    for p in model.parameters():
        p.grad = None


def _frozen_stem(model):
    """The stem in eval() while the rest goes on."""
    stem = model.bn1
    model.train()
    stem.eval()
    with torch.no_grad():
        for x, _ in nets.batches(5):
            model(x)


def _few_batches(model):
    for _, norm in batch_norms(model):
        norm.reset_running_stats()
    _train_steps(model, 6)


def _bfloat16(model):
    """Run in bfloat16 for some steps, then back, as a saved and reloaded model has it."""
    _train_steps(model.bfloat16(), 20, nets.digits()[0].bfloat16())
    model.float()


def _vanishing(model):
    """A convolution whose outputs are a thousand times too small."""
    model.conv1.weight.data.mul_(1e-3)
    _recalibrate(model)


def _dead_units(model):
    model.conv1.weight.data[:3].zero_()
    _recalibrate(model)


def _cure_units(model):
    nn.init.kaiming_normal_(model.conv1.weight)
    _recalibrate(model)


def _inplace_abn(model):
    """As a library keeps them that normalises with |weight|."""
    model.layer1[0].bn1.weight.data.neg_()


# rule: (architecture, level, layers, plant, cure)
FAULTS = {
    "non-finite": ("resnet", "error", None, _nan_batch, _recalibrate),
    "negative-variance": ("dense", "error", ("2",), lambda m: _set(m[2], running_var=[-0.1] * 64), _recalibrate),
    "never-updated": ("resnet", "error", ("layer2.0.bn1",), _new_layer, _recalibrate),
    "momentum was 0": ("separable", "error", ("stem.1", "norm1", "norm2"), _zero_momentum, _recalibrate),
    "double-update": (
        "resnet", "warning", ("layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"),
        _checkpointed, _recalibrate,
    ),
    "counters-disagree": ("resnet", "warning", ("bn1",), _frozen_stem, _recalibrate),
    "unfinished-average": ("separable", "warning", ("stem.1", "norm1", "norm2"), _few_batches,
                           lambda m: _train_steps(m, 60)),
    "rounded-statistics": ("dense", "warning", ("2", "5"), _bfloat16, _recalibrate),
    "eps-dominates": ("resnet", "warning", ("bn1",), _vanishing,
                      lambda m: (m.conv1.weight.data.mul_(1e3), _recalibrate(m))),
    "constant-channels": ("resnet", "warning", ("bn1",), _dead_units, _cure_units),
    "dead-weight": ("resnet", "warning", ("layer1.1.bn2",), lambda m: _set(m.layer1[1].bn2, weight=[0.0] * 8),
                    lambda m: _set(m.layer1[1].bn2, weight=[1.0] * 8)),
    "sign-flipped": ("resnet", "warning", ("layer1.0.bn1",), _inplace_abn,
                     lambda m: m.layer1[0].bn1.weight.data.abs_()),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_named_and_cured(fault):
    """The finding names exactly the spoiled layers, with its level; after the cure it is gone."""
    architecture, level, layers, plant, cure = FAULTS[fault]
    rule = "never-updated" if fault == "momentum was 0" else fault
    model = nets.trained(architecture)
    assert rule not in _found(model)

    plant(model)
    finding = _found(model)[rule]

    assert finding.level == level
    if layers is not None:
        assert finding.layers == layers
    assert finding.evidence
    assert finding.consequence
    assert finding.remedy
    if fault == "momentum was 0":
        assert "3 batches were counted" in finding.evidence
    cure(model)
    assert rule not in _found(model)


@pytest.mark.parametrize("name", nets.MAKERS)
def test_healthy_networks_yield_nothing(name):
    """Architectures trained for a moment give neither error nor warning."""
    diagnosis = xray(nets.trained(name).state_dict())

    assert diagnosis.worst in (None, "note")
    assert diagnosis.exit_status(strict=True) == 0


def test_a_new_model_is_a_warning_not_an_error():
    """Where no layer was updated at all, the model may simply be new."""
    finding = _found(nets.ResNet())["never-updated"]

    assert finding.level == "warning"


def test_recalibrated_statistics_are_not_unfinished():
    """A small counter means nothing where the variances cannot be an average that began at 1."""
    model = nets.trained("resnet")
    for _, norm in batch_norms(model):
        norm.num_batches_tracked.fill_(3)

    assert "unfinished-average" not in _found(model)


def test_a_bias_before_a_norm_is_a_note():
    """The redundant bias is found by the names of its neighbours: numbered, or conv1 beside bn1."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
            self.tail = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    finding = _found(Named())["redundant-bias"]

    assert (finding.level, finding.layers) == ("note", ("bn1", "tail.1"))
    assert "12 numbers" in finding.evidence


@pytest.mark.parametrize(("momentum", "rule"), [(0.99, "momentum-inverted"), (0.0, "momentum-zero")])
def test_momentum_is_seen_in_whole_models(tmp_path, momentum, rule):
    """A file that holds whole modules tells their momentum as well."""
    model = nets.trained("separable")
    model.norm1.momentum = momentum
    torch.save(model, path := tmp_path / "model.pt")

    findings = {f.rule: f for f in xray(path).findings}

    assert findings[rule].layers == ("norm1",)


def test_fp16_statistics_are_a_note():
    """Half precision's 11 bits do less harm than bfloat16's 8."""
    model = nets.trained("dense")
    for _, norm in batch_norms(model):
        _set(norm, running_mean=norm.running_mean.half().float(), running_var=norm.running_var.half().float())

    finding = _found(model)["rounded-statistics"]

    assert finding.level == "note"
    assert "float16" in finding.evidence


def test_single_dead_channels_are_notes():
    """One pruned weight or one constant channel is no reason to stop."""
    model = nets.trained("dense")
    model[2].weight.data[3].zero_()
    model[5].running_var[0] = 0.0

    found = _found(model)

    assert found["dead-weight"].level == found["constant-channels"].level == "note"


def test_files_and_dictionaries_are_seen_alike(tmp_path):
    """A file gives the findings of its state_dict, and the worst comes first."""
    model = nets.trained("resnet")
    _new_layer(model)
    _inplace_abn(model)
    torch.save({"state_dict": model.state_dict()}, path := tmp_path / "last.ckpt")

    diagnosis = xray(path)

    assert diagnosis.findings == xray(model.state_dict()).findings
    assert [f.level for f in diagnosis.findings] == ["error", "warning"]
    assert diagnosis.worst == "error"
    assert (diagnosis.exit_status(), diagnosis.command) == (1, f"evenly xray {path}")


def test_a_layer_called_twice_explains_its_counter():
    """Where the number of calls is known, a shared layer's counter is no double update."""
    state = {}
    for name, count in (("a", 40), ("b", 80)):
        norm = nn.BatchNorm1d(8)
        norm.running_mean.normal_()
        norm.num_batches_tracked.fill_(count)
        state |= {f"{name}.{key}": value for key, value in norm.state_dict().items()}

    assert [f.rule for f in look(layers_of(state), state)] == ["double-update"]
    assert look(layers_of(state, calls={"b": 2}), state) == []


def test_every_rule_is_tried():
    """A rule without a planted fault would be a rule that nobody has seen at work."""
    tried = {*FAULTS, "redundant-bias", "momentum-inverted", "momentum-zero"} - {"momentum was 0"}
    calls = (n for n in ast.walk(ast.parse(inspect.getsource(rules))) if isinstance(n, ast.Call))
    named = {c.args[0].value for c in calls if getattr(c.func, "id", "") == "Finding"}

    assert named == tried
