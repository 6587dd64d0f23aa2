"""Per-layer distributions while a loop trains."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from tests.tools import nets
from torch import nn

from evenly.tools import callbacks
from evenly.tools.watch import watch


def _loop(model, steps=4, size=64):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, y = nets.digits()
    model.train()
    for i in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[i * size : i * size + size]), y[i * size : i * size + size]).backward()
        optimizer.step()
    return model


def test_every_norm_is_seen_at_the_given_steps():
    """Each look has each norm's input and output, in the order of calls, at every third step."""
    model = nets.dense()

    with watch(model, every=3) as history:
        _loop(model, 7)

    expected = [(s, layer, side) for s in (0, 3, 6) for layer in ("2", "5") for side in ("input", "output")]
    assert [(r.step, r.layer, r.side) for r in history.records] == expected


def test_numbers_are_those_of_the_tensor():
    """Small tensors are looked at whole: mean, std, quantiles, dead share and histogram are exact."""
    x = torch.randn(200, 4)
    x[:, 2] = -1 - x[:, 2].abs()
    model = nn.BatchNorm1d(4).train()

    with watch(model, every=1) as history:
        y = model(x)

    seen, given = history.records
    assert seen.mean == pytest.approx(x.mean().item(), abs=1e-6)
    assert seen.std == pytest.approx(x.std(correction=0).item(), rel=1e-5)
    assert seen.quantiles[2] == pytest.approx(x.quantile(0.5, interpolation="nearest").item(), abs=1e-2)
    assert seen.quantiles[0] == pytest.approx(x.quantile(0.05).item(), abs=2e-2)
    assert seen.dead == 0.25
    assert given.dead == 0
    assert sum(seen.counts) == x.numel()
    inside = ((x >= seen.edges[10]) & (x < seen.edges[11])).sum().item()
    assert abs(seen.counts[10] - inside) <= 1
    assert given.mean == pytest.approx(y.mean().item(), abs=1e-6)


def test_large_tensors_are_sampled_fairly():
    """A sample of all channels stands for a large image batch, whichever way it lies."""
    x = torch.randn(32, 16, 40, 40) * torch.arange(1, 17).view(1, 16, 1, 1) + 3
    for t in (x, x.to(memory_format=torch.channels_last)):
        with watch(model := nn.BatchNorm2d(16).train(), every=1) as history:
            model(t)
        seen = history.records[0]

        assert sum(seen.counts) <= 3 * 4096
        assert seen.mean == pytest.approx(3, abs=0.7)
        assert seen.std == pytest.approx(x.std().item(), rel=0.1)


def test_drift_is_measured_from_the_first_look():
    """Channel means that move by one standard deviation have drifted by one."""
    x = torch.randn(500, 4)
    with watch(model := nn.BatchNorm1d(4).train(), every=1) as history:
        model(x)
        model(x + 1)

    assert [r.drift for r in history.records if r.side == "input"] == pytest.approx([0, 1], abs=0.05)


def test_evaluation_is_not_counted():
    """Only training forwards of the model count and are seen."""
    model = nets.dense()
    x = nets.digits()[0][:16]

    with watch(model, every=1) as history:
        model.train()(x)
        model.eval()(x)
        model.train()(x)

    assert {r.step for r in history.records} == {0, 1}


def test_training_is_not_changed():
    """A watched run gives bit for bit the weights of an unwatched one, and leaves no hook behind."""
    torch.manual_seed(0)
    plain = _loop(nets.dense())
    torch.manual_seed(0)
    model = nets.dense()
    with watch(model, every=1):
        _loop(model)

    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_fails_leaves_nothing_behind():
    """What a broken step saw does not enter the next step's records."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 2)).train()

    with watch(model, every=1) as history:
        with pytest.raises(RuntimeError):
            model(torch.randn(8, 3))
        model[1] = nn.Linear(3, 2)
        model(torch.randn(8, 3))

    assert [r.step for r in history.records] == [1, 1]


def test_other_norms_are_watched_too():
    """Layer, group and instance norm have their channels where they are."""
    model = nn.Sequential(nn.LayerNorm(6), nn.GroupNorm(5, 5), nn.InstanceNorm1d(5))

    with watch(model, every=1) as history:
        model(torch.randn(3, 5, 6))

    assert {r.layer for r in history.records} == {"0", "1", "2"}


def test_frame_and_tensorboard():
    """A row for each record; scalars and a histogram for each in TensorBoard's words."""
    with watch(model := nets.dense(), every=2) as history:
        _loop(model)
    frame, calls = history.frame(), []

    class Writer:
        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def add_histogram_raw(self, name, **values):
            assert len(values["bucket_limits"]) == len(values["bucket_counts"]) == 32
            assert values["num"] == sum(values["bucket_counts"])
            calls.append((name, values["sum"], values["global_step"]))

    history.to_tensorboard(Writer())

    assert len(frame) == len(history.records) == 8
    assert list(frame.columns)[:5] == ["step", "layer", "side", "mean", "std"]
    assert ("2/input/mean", history.records[0].mean, 0) in calls
    assert len(calls) == 8 * 5


def test_tensorboard_s_own_writer_takes_it(tmp_path):
    """The histogram has the form that TensorBoard's writer accepts."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    with watch(model := nets.dense(), every=2) as history:
        _loop(model, 2)

    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        history.to_tensorboard(writer)

    assert any(tmp_path.iterdir())


def test_page_is_self_contained(tmp_path):
    """The page shows every layer and refers to nothing outside; an empty history is refused."""
    with watch(model := nets.dense(), every=1) as history:
        with pytest.raises(ValueError, match="nothing was recorded"):
            history.to_html(tmp_path / "no.html")
        _loop(model)
    history.to_html(path := tmp_path / "history.html")
    text = path.read_text()

    assert text.count("<svg") == 8
    assert "<script" not in text
    assert "href=" not in text.replace('xlink:href="#', "")
    assert "src=" not in text


def test_wrong_use_is_refused():
    """No norm to watch, and an interval of nothing."""
    with pytest.raises(ValueError, match="no norm"):
        watch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        watch(nn.BatchNorm1d(2), every=0)


def test_lightning_callback(monkeypatch, tmp_path):
    """The hooks that Lightning calls around each batch make the records, whatever the step calls."""
    module = types.ModuleType("pytorch_lightning")
    module.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", module)
    callback = callbacks.lightning_callback(every=2, html=str(tmp_path / "h.html"))
    model = nn.ModuleDict({"net": nets.dense()}).train()

    callback.setup(None, model, "fit")
    for i in range(3):
        callback.on_train_batch_start(None, model, None, i)
        model["net"](nets.digits()[0][:16])
        callback.on_train_batch_end(None, model, None, None, i)
    callback.teardown(None, model, "fit")

    assert isinstance(callback, module.Callback)
    assert [r.step for r in callback.history.records] == [0] * 4 + [2] * 4
    assert callback.history.records[0].layer == "net.2"
    assert (tmp_path / "h.html").exists()
    assert not model["net"][2]._forward_hooks


def test_callbacks_say_what_is_missing(monkeypatch):
    """Without the package, the error names it."""
    for name in ("lightning.pytorch", "pytorch_lightning", "keras"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ImportError, match=r"lightning\.pytorch or pytorch_lightning"):
        callbacks.lightning_callback()
    with pytest.raises(ImportError, match="keras"):
        callbacks.keras_callback()
