"""Why eval() is worse than train(): faults planted in real networks, found, named, cured and written."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.processes import Processes
from tests.tools import nets
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.tools import checkpoint as files
from evenly.tools import fit
from evenly.tools.diagnose import diagnose
from evenly.tools.sites import sites
from evenly.tools.xray import xray


def _rules(diagnosis):
    return {f.rule: f for f in diagnosis.findings}


def _spoil(model, layer="layer1.1.bn2"):
    norm = model.get_submodule(layer)
    norm.running_mean.add_(3)
    norm.running_var.mul_(16)
    return model


def _fingerprint(model):
    parts = [v.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for v in model.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def spoiled():
    """A residual network with one spoiled layer, and its diagnosis."""
    model = _spoil(nets.trained("resnet"))
    return model, diagnose(model, nets.batches(8))


def test_the_culprit_is_named_and_its_cure_ranks_first(spoiled):
    """The gap is an error that names the layer; recalibrating that layer alone restores nearly all that was lost."""
    _, diagnosis = spoiled
    finding = diagnosis.findings[0]

    assert (finding.rule, finding.level, finding.layers) == ("train-eval-gap", "error", ("layer1.1.bn2",))
    assert diagnosis.gap.training - diagnosis.gap.evaluation == diagnosis.gap.lost > 50
    assert diagnosis.best.restored > 0.95 * diagnosis.gap.lost
    alone = next(t for t in diagnosis.trials if t.name == "recalibrate layer1.1.bn2 alone")
    assert alone.restored > 0.9 * diagnosis.gap.lost
    assert set(alone.changes) <= {f"layer1.1.bn2.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert diagnosis.exit_status() == 1
    assert [t.restored for t in diagnosis.trials] == sorted((t.restored for t in diagnosis.trials), reverse=True)


def test_every_remedy_was_tried(spoiled):
    """All remedies stand in the list, each with what it scores."""
    names = [t.name for t in spoiled[1].trials]

    for word in ("recalibrate all", "alone", "adapt, blend 0.5", "momentum", "at test time", "ghosts", "freeze"):
        assert any(word in name for name in names), word


def test_nothing_of_the_model_changes():
    """Bit for bit the same weights, statistics, gradients, modes, hooks and random state afterwards."""
    model = _spoil(nets.trained("resnet")).train()
    model.layer2.eval()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before, modes = _fingerprint(model), [m.training for m in model.modules()]
    random = torch.get_rng_state()

    diagnose(model, nets.batches(4))

    assert _fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    assert bool((model.conv1.weight.grad == 1).all())
    assert all(p.grad is None for n, p in model.named_parameters() if n != "conv1.weight")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("name", nets.MAKERS)
@pytest.mark.parametrize("kind", ["torch", "evenly"])
def test_healthy_networks_yield_no_warning(name, kind):
    """Architectures trained for a moment are found healthy, on torch's layers and on evenly's, labelled or not."""
    model = nets.trained(name)
    if kind == "evenly":
        evenly.convert(model)

    for batches in (nets.batches(8), [x for x, _ in nets.batches(8)]):
        diagnosis = diagnose(model, batches)

        assert diagnosis.worst in (None, "note"), diagnosis.table()
        assert not diagnosis.gap.unlike


def test_without_labels_the_score_is_agreement_with_training_form():
    """The report says so, and the culprit is the same."""
    diagnosis = diagnose(_spoil(nets.trained("resnet")), [x for x, _ in nets.batches(8)])

    assert diagnosis.gap.score == "disagreement with training form"
    assert diagnosis.gap.training == 0
    assert diagnosis.findings[0].level == "warning"
    assert diagnosis.findings[0].layers == ("layer1.1.bn2",)


def test_a_loss_of_the_user_s_decides():
    """``loss(output, batch)`` is what is restored, less is better; ``forward`` says how to call."""
    batches = [{"image": x, "label": y} for x, y in nets.batches(8)]

    diagnosis = diagnose(
        _spoil(nets.trained("resnet")),
        batches,
        forward=lambda model, batch: model(batch["image"]),
        loss=lambda output, batch: F.cross_entropy(output, batch["label"]),
    )

    assert diagnosis.gap.score == "loss"
    assert diagnosis.gap.evaluation > 2 * diagnosis.gap.training
    assert diagnosis.best.score < diagnosis.gap.training + 0.1


def test_statistics_of_nan_are_found_and_cured(tmp_path):
    """One NaN batch under torch's layers: accuracy is nothing, recalibrating brings all of it back."""
    model = nets.trained("resnet").train()
    model(torch.full((8, 1, 8, 8), torch.nan))

    diagnosis = diagnose(model.eval(), nets.batches(8))

    assert diagnosis.gap.evaluation == 0
    assert {"non-finite", "train-eval-gap"} <= _rules(diagnosis).keys()
    assert diagnosis.best.name == "recalibrate all"
    diagnosis.to_json(tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text())["layers"][0]["distance"] is None
    diagnosis.fix(out := tmp_path / "mended.pt")
    model.load_state_dict(torch.load(out))
    assert diagnose(model, nets.batches(8)).worst is None


def test_shifted_data_is_named_as_such():
    """Data of another contrast: the first norm sees it, and adapting is among the remedies that help."""
    shifted = [(x * 0.4 + 0.5, y) for x, y in nets.batches(8)]
    model = nets.trained("resnet")

    diagnosis = diagnose(model, shifted)

    assert _rules(diagnosis)["shifted-data"].layers[0] == "bn1"
    assert any(t.name.startswith("adapt") and t.restored > 0.2 * diagnosis.gap.lost for t in diagnosis.trials)
    evenly.adapt(model, shifted)
    assert "shifted-data" not in _rules(diagnose(model, shifted))


def test_stale_statistics_are_named_where_the_score_hides_them():
    """A layer whose statistics are far off is a warning even where accuracy does not suffer."""
    model = nets.trained("resnet")
    model.layer2[0].bn2.running_var.mul_(6)

    found = _rules(diagnose(model, nets.batches(8)))

    assert found["stale-statistics"].layers == ("layer2.0.bn2",)
    evenly.recalibrate(model, nets.batches(8))
    assert diagnose(model, nets.batches(8)).worst is None


@pytest.mark.parametrize("momentum", [0.99, 0.9])
def test_inverted_momentum(momentum):
    """Keras's number in PyTorch's argument is recognised, and the other way round proposed."""
    model = nets.trained("separable")
    model.norm2.momentum = momentum

    finding = _rules(diagnose(model, nets.batches(4)))["momentum-inverted"]

    assert finding.layers == ("norm2",)
    assert f"momentum={1 - momentum:g}" in finding.remedy
    model.norm2.momentum = 1 - momentum
    assert "momentum-inverted" not in _rules(diagnose(model, nets.batches(4)))


class _Checkpointed(nn.Module):
    def __init__(self, inner, use_reentrant):
        super().__init__()
        self.inner, self.use_reentrant = inner, use_reentrant

    def forward(self, x):
        """The same as the inner model, its stages recomputed in backward."""
        x = F.relu(self.inner.bn1(self.inner.conv1(x)))
        x = checkpoint(self.inner.layer1, x, use_reentrant=self.use_reentrant)
        return self.inner.fc(self.inner.layer2(x).mean((2, 3)))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_double_updates_are_seen_in_one_step(use_reentrant):
    """Activation checkpointing is caught in the act, only where it is; evenly's layers cure it."""
    model = _Checkpointed(nets.trained("resnet"), use_reentrant)

    finding = _rules(diagnose(model, nets.batches(4)))["double-update"]

    assert finding.level == "error"
    assert finding.layers == tuple(f"inner.layer1.{i}.bn{j}" for i in (0, 1) for j in (1, 2))
    evenly.convert(model)
    assert "double-update" not in _rules(diagnose(model, nets.batches(4)))


def test_dropout_before_a_norm():
    """The variance under dropout is larger; behind the last norm it is no fault."""

    def network(first, last):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(first), nn.Linear(64, 32, bias=False),
            nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(last), nn.Linear(32, 10),
        )  # fmt: skip

    bad = nets.train(network(0.5, 0.0), steps=150)
    found = _rules(diagnose(bad, nets.batches(8)))

    assert found["dropout-before-norm"].layers == ("5",)
    assert "dropout-before-norm" not in _rules(diagnose(nets.train(network(0.0, 0.5), 150), nets.batches(8)))


def test_batches_too_small():
    """Batches of four are too small, of 64 not; the number of samples is in the evidence."""
    x, y = nets.digits()
    small = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 64, 4)]

    found = _rules(diagnose(nets.trained("dense"), small))["batch-too-small"]

    assert "the batch has 4" in found.evidence
    assert "batch-too-small" not in _rules(diagnose(nets.trained("dense"), nets.batches(16)))


def test_sorted_batches_are_told_from_small_ones():
    """Batches of one class each are large and yet scatter."""
    x, y = nets.digits()
    order = y.argsort(stable=True)
    batches = [(x[i], y[i]) for i in order.split(128)[:12]]

    found = _rules(diagnose(nets.trained("dense"), batches))

    assert "batches-differ" in found
    assert "batch-too-small" not in found


@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (nn.InstanceNorm2d(8), torch.randn(4, 8, 1, 1)),
        (nn.GroupNorm(8, 8), torch.randn(4, 8)),
        (nn.LayerNorm(1), torch.randn(4, 1)),
        (evenly.GroupNorm(8, 8), torch.randn(4, 8, 1, 1)),
        (nn.BatchNorm1d(8), torch.randn(1, 8)),
    ],
)
def test_norms_over_one_element(norm, x):
    """A mean over one element erases its input, whether torch refuses it or not."""
    finding = _rules(diagnose(nn.Sequential(norm), [x]))["one-element"]

    assert (finding.level, finding.layers) == ("error", ("0",))
    assert str(tuple(x.shape)) in finding.evidence
    assert "one-element" not in _rules(diagnose(nn.Sequential(nn.GroupNorm(2, 8)), [torch.randn(4, 8)]))


def test_skipped_and_untracked():
    """Batches that evenly's layers left out, and layers without statistics, are named."""
    model = nn.Sequential(evenly.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    model(torch.full((4, 3), torch.inf))

    found = _rules(diagnose(model.eval(), [torch.randn(16, 3) for _ in range(4)]))

    assert found["skipped-batches"].layers == ("0",)
    assert found["untracked"].layers == ("1",)


def _apart(rank, state):
    """The rules found before, while and after process 1 has statistics of its own, with their layers."""
    model = nets.dense()
    model.load_state_dict(state)

    def found():
        return {f.rule: f.layers for f in diagnose(model.eval(), nets.batches(2)).findings}

    before = found()
    model[2].running_mean.add_(rank)
    apart = found()
    evenly.pool_statistics(model)
    return before, apart, found()


def test_processes_that_differ():
    """Statistics that differ between processes are found, and pooling cures it."""
    with Processes(2) as two:
        answers = two.run(_apart, nets.trained("dense").state_dict())

    for before, apart, after in answers:
        assert "unsynchronised" not in before
        assert apart["unsynchronised"] == ("2",)
        assert "unsynchronised" not in after


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_fix_writes_the_file_mended(tmp_path, form, prefix):
    """Same format and keys; only the best trial's tensors differ; the new file is healthy, the given one untouched."""
    spoiled = _spoil(nets.trained("resnet"))
    state = {prefix + key: value for key, value in spoiled.state_dict().items()}
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pt")
    save_file(state, path) if form == "safetensors" else torch.save({"state_dict": state, "epoch": 9}, path)
    before = path.read_bytes()
    model = nets.ResNet()
    file = files.read(path)
    loaded = fit.load(model, file)
    diagnosis = diagnose(model, nets.batches(8))
    diagnosis.checkpoint, diagnosis.keys = loaded.file, loaded.keys

    trial = diagnosis.fix(out := tmp_path / ("out" + path.suffix))

    loaded = load_file(out) if form == "safetensors" else torch.load(out)["state_dict"]
    assert loaded.keys() == state.keys()
    changed = {key for key in state if not torch.equal(state[key], loaded[key])}
    assert changed == {prefix + key for key in trial.changes}
    assert path.read_bytes() == before
    mended = nets.ResNet()
    fit.load(mended, files.read(out))
    assert diagnose(mended, nets.batches(8)).gap.unlike is False
    with pytest.raises(ValueError, match="another name"):
        diagnosis.fix(path)


def test_nothing_to_write_is_said():
    """A healthy model's best trial is no reason to write a file that is the same."""
    diagnosis = diagnose(nn.Sequential(nn.Linear(3, 2)), [torch.randn(8, 3)])

    with pytest.raises(ValueError, match="nothing to write"):
        diagnosis.fix("never.pt")


def test_one_batch_is_cut_in_halves():
    """A single batch serves to measure and to score."""
    x, y = nets.digits()

    diagnosis = diagnose(_spoil(nets.trained("resnet")), [(x[:256], y[:256])])

    assert diagnosis.findings[0].layers[0] == "layer1.1.bn2"


def test_findings_are_told_as_they_come():
    """What the numbers alone say comes before the first batch is run."""
    model, lines = nets.trained("resnet"), []
    model.layer2[0].bn1.reset_running_stats()

    diagnose(model, nets.batches(4), say=lines.append)

    assert "never-updated" in lines[0]
    assert any("measured, batch 1 of " in line for line in lines[1:])


def test_wrong_batches_are_refused():
    """No batches and a bare tensor say what is wrong."""
    with pytest.raises(ValueError, match="batches is empty"):
        diagnose(nets.dense(), [])
    with pytest.raises(TypeError, match=r"\[batch\]"):
        diagnose(nets.dense(), torch.randn(4, 64))


def test_table_and_json_say_the_same(spoiled, tmp_path):
    """The table names finding and trials; the JSON file holds them as plain values."""
    diagnosis = spoiled[1]
    table = diagnosis.table()

    diagnosis.to_json(path := tmp_path / "d.json")
    values = json.loads(path.read_text())

    assert "train-eval-gap: layer1.1.bn2" in table
    assert all(t.name in table for t in diagnosis.trials)
    assert [f["rule"] for f in values["findings"]] == [f.rule for f in diagnosis.findings]
    assert values["worst"] == "error"
    assert values["trials"][0]["restored"] == diagnosis.trials[0].restored


def test_a_copy_is_judged_like_the_original(spoiled):
    """The same model and batches give the same diagnosis."""
    model, diagnosis = spoiled

    assert diagnose(copy.deepcopy(model), nets.batches(8)).to_dict() == diagnosis.to_dict()


def test_load_names_what_is_missing(tmp_path):
    """A file of another model is refused by the first tensor that it lacks, or whose shape differs."""
    torch.save(nets.trained("dense").state_dict(), path := tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"no 'conv1.weight'"):
        fit.load(nets.ResNet(), files.read(path))
    torch.save(nets.ResNet(width=4).state_dict(), path)
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(4, 1, 3, 3\), not \(8, 1, 3, 3\)"):
        fit.load(nets.ResNet(), files.read(path))


def test_old_files_without_counters_load():
    """A missing num_batches_tracked is no obstacle."""
    model = nets.trained("dense")
    state = {k: v for k, v in model.state_dict().items() if "tracked" not in k}

    assert xray(state).findings == []
    assert len(sites(model)) == 2
