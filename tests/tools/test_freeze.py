"""Fixed statistics."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import evenly
from evenly.tools.freeze import freeze, is_frozen, unfreeze


def _model(kind=nn.BatchNorm1d) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), kind(4))
    model[1].running_mean.fill_(0.5)
    return model


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, evenly.BatchNorm1d])
def test_training_uses_and_keeps_the_running_statistics(kind):
    """Under train() the output is that of eval(), nothing is counted, and weight and bias learn."""
    model, x = _model(kind), torch.randn(8, 3)
    expected = model.eval()(x)

    y = freeze(model).train()(x)
    y.sum().backward()

    torch.testing.assert_close(y, expected)
    assert int(model[1].num_batches_tracked) == 0
    assert model[1].bias.grad.tolist() == [8.0] * 4


def test_copies_and_files_stay_frozen():
    """A deep copy and a pickled model are frozen too, and the state_dict has the same keys."""
    model = _model()
    keys = list(model.state_dict())
    file = io.BytesIO()
    torch.save(freeze(model), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)

    for m in (copy.deepcopy(model), loaded):
        m.train()(torch.randn(8, 3))
        assert is_frozen(m[1])
        assert list(m.state_dict()) == keys
        assert int(m[1].num_batches_tracked) == 0


def test_unfreeze_undoes_it():
    """After unfreeze the norms train again, in the model's mode, with no hook left."""
    model = unfreeze(freeze(freeze(_model().train())))

    assert model[1].training
    assert type(model[1]) is nn.BatchNorm1d
    assert not model[1]._forward_pre_hooks
    model(torch.randn(8, 3))
    assert int(model[1].num_batches_tracked) == 1


def test_other_hooks_survive():
    """unfreeze takes away its own hook only."""
    model, seen = _model(), []
    model[1].register_forward_pre_hook(lambda m, args: seen.append(1))

    unfreeze(freeze(model))(torch.randn(8, 3))

    assert seen == [1]


class Foreign(nn.BatchNorm1d):
    """Somebody else's batch norm."""


def _held(kind: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    with pytest.warns(UserWarning, match="holds by hooks.*: 1") if kind is Foreign else _nothing():
        return freeze(_model(kind))


def _set() -> nn.Sequential:
    model = _model(evenly.BatchNorm1d)
    model[1].frozen = True
    return model


class _nothing:  # noqa: N801  # a context
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


WAYS: dict[str, Callable[[], nn.Sequential]] = {
    "freeze, torch's": _held,
    "freeze, ours": lambda: _held(evenly.BatchNorm1d),
    "freeze, converted": lambda: freeze(evenly.convert(_model())),
    "freeze, then convert": lambda: evenly.convert(freeze(_model())),
    "convert to frozen": lambda: evenly.convert(_model(), norm="frozen"),
    "set on the layer": _set,
    "freeze, somebody's": lambda: _held(Foreign),
}
X = torch.randn(8, 3) * 3 + 5


def _compiled(model: nn.Sequential) -> None:
    torch.compile(model, backend="eager")(X)


def _functional(model: nn.Sequential) -> None:
    torch.func.functional_call(model, dict(model.named_parameters()), X)


def _pickled(model: nn.Sequential) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _averaged(model: nn.Sequential) -> nn.Module:
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    average.update_parameters(model)
    return average.module


def _swa(model: nn.Sequential) -> nn.Module:
    average = AveragedModel(model)
    update_bn([X, X], average)
    return average.module


def _loaded(model: nn.Sequential) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def _refused(change: Callable[[Any], Any], model: nn.Sequential) -> None:
    with pytest.raises(RuntimeError, match="frozen"):
        change(model)


# What happens to a frozen model; the model to look at afterwards, if it is another.
EVENTS: dict[str, Callable[[nn.Sequential], nn.Module | None]] = {
    "a step": lambda m: m.train()(X).sum().backward(),
    "a compiled step": _compiled,
    "a step under functional_call": _functional,
    "deepcopy": copy.deepcopy,
    "pickle": _pickled,
    "an averaged copy": _averaged,
    "load_state_dict": _loaded,
    "other types and back": lambda m: m.double().float(),
    "share_memory": lambda m: m.share_memory(),
}
GUARDED: dict[str, Callable[[nn.Sequential], nn.Module | None]] = {
    "reset_running_stats": lambda m: m[1].reset_running_stats(),
    "weight averaging": _swa,
    "assignment of the mean": lambda m: _refused(lambda m: setattr(m[1], "running_mean", torch.zeros(4)), m),
    "assignment of the counter": lambda m: _refused(lambda m: setattr(m[1], "num_batches_tracked", torch.tensor(0)), m),
    "torch's sync converter": lambda m: _refused(nn.SyncBatchNorm.convert_sync_batchnorm, m),
    "our sync converter": lambda m: evenly.convert(m, norm="sync"),
    "fusing": lambda m: evenly.convert(m, fuse=True),
}
CELLS = [(w, e) for w in WAYS for e in (*EVENTS, *GUARDED) if w != "freeze, somebody's" or e in EVENTS]
# `norm="sync"` is another kind than `norm="frozen"`, and undoes it as one kind undoes another.
CELLS.remove(("convert to frozen", "our sync converter"))


@pytest.mark.parametrize(("way", "event"), CELLS)
def test_frozen_stays_frozen(way: str, event: str) -> None:
    """Whatever froze a norm and whatever happens to it: statistics stay, training gives what evaluation gives."""
    model = WAYS[way]()
    want = copy.deepcopy(model).eval()(X)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    found = (EVENTS | GUARDED)[event](model.train())
    model = found if isinstance(found, nn.Module) else model

    torch.testing.assert_close(model.train()(X), want, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[f"1.{name}"], before[f"1.{name}"]), name
    assert is_frozen(model[1])


@pytest.mark.parametrize("way", WAYS)
def test_unfreeze_thaws_whatever_froze(way: str) -> None:
    """Then training counts again, and the class is the one before."""
    model = unfreeze(WAYS[way]().train())
    model(X)

    assert not is_frozen(model[1])
    assert int(model[1].num_batches_tracked) == 1
    torchs = way in ("freeze, torch's",)
    assert type(model[1]).__module__ == ("torch.nn.modules.batchnorm" if torchs else type(model[1]).__module__)


@pytest.mark.parametrize("way", WAYS)
def test_recalibrate_and_adapt_ask_the_same_question(way: str) -> None:
    """What is frozen, by whatever, is not measured anew."""
    for tool in (evenly.recalibrate, evenly.adapt):
        model = WAYS[way]()
        mean = model[1].running_mean.clone()
        with contextlib.suppress(ValueError):  # there may be nothing else to measure
            tool(model, [X])
        assert torch.equal(model[1].running_mean, mean)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_freezing_a_compiled_model(converted: bool, fuse: bool) -> None:
    """A graph made before does not outlive freezing, nor unfreezing."""
    torch._dynamo.reset()
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    if converted:
        evenly.convert(model, fuse=fuse)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    freeze(model)
    before: Tensor = model[1].running_mean.clone()
    y = compiled(X)

    assert torch.equal(model[1].running_mean, before)
    torch.testing.assert_close(y, model.eval()(X))
    unfreeze(model.train())
    compiled(X)
    assert not torch.equal(model[1].running_mean, before)


def test_others_are_refilled_by_weight_averaging() -> None:
    """update_bn leaves frozen layers and fills the others."""
    model = nn.Sequential(freeze(nn.BatchNorm1d(3)), nn.BatchNorm1d(3))
    update_bn([X], model)

    assert model[0].running_mean.tolist() == [0.0] * 3
    torch.testing.assert_close(model[1].running_mean, X.mean(0), rtol=1e-4, atol=0)
