"""State beside the buffers: the skip counter, and micro-batches that wait for each other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import evenly

KINDS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "InstanceNorm2d")
NAN = torch.full((8, 4), float("nan"))
X = torch.randn(8, 4) + 1000


@pytest.mark.parametrize("name", KINDS)
def test_buffers_are_torchs(name: str) -> None:
    """Name for name, also after steps and skips."""
    ours, torchs = getattr(evenly, name)(4, track_running_stats=True), getattr(nn, name)(4, track_running_stats=True)
    if name == "BatchNorm1d":
        ours(NAN)
        ours.accumulate = 2
        ours(X)

    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in torchs.named_buffers()]


def _skipping() -> evenly.BatchNorm1d:
    layer = evenly.BatchNorm1d(4)
    layer(NAN)
    return layer


def _waiting() -> evenly.BatchNorm1d:
    layer = evenly.BatchNorm1d(4, accumulate=2)
    layer(X)
    return layer


def _unpickled(layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer))


def _old(layer: Any) -> Any:
    """As an older version pickled it: with buffers beside torch's."""
    state = layer.__getstate__()
    counter = state.pop("_skip_counter")
    waits = {name: state.pop(name) for name in list(state) if name.startswith("pending_")}
    state["_buffers"] = {**state["_buffers"], "skipped_batches": counter, **waits}
    state["_non_persistent_buffers_set"] = {"skipped_batches", *waits}
    made = evenly.BatchNorm1d.__new__(evenly.BatchNorm1d)
    made.__setstate__(state)
    return made


def _saved(layer: Any) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _loaded(layer: Any) -> None:
    layer.load_state_dict(evenly.BatchNorm1d(4).state_dict())


def _through_meta(layer: Any) -> None:
    layer.to("meta").to_empty(device="cpu")
    layer.load_state_dict(evenly.BatchNorm1d(4).state_dict())


# event, what is left of one skipped batch, what is left of one waiting micro-batch
EVENTS: dict[str, tuple[Callable[[Any], Any], int, int]] = {
    "nothing": (lambda m: None, 1, 1),
    "deepcopy": (copy.deepcopy, 1, 1),
    "pickle": (_unpickled, 1, 1),
    "torch.save": (_saved, 1, 1),
    "an older pickle": (_old, 1, 1),
    "double": (lambda m: m.double(), 1, 1),
    "half": (lambda m: m.half(), 1, 1),
    "train": (lambda m: m.train(), 1, 1),
    "eval": (lambda m: m.eval().train(), 1, 0),
    "training = False": (lambda m: (setattr(m, "training", False), m.train())[1], 1, 0),
    "freezing": (lambda m: evenly.unfreeze(evenly.freeze(m)), 1, 0),
    "load_state_dict": (_loaded, 1, 0),
    "reset_running_stats": (lambda m: m.reset_running_stats(), 0, 0),
    "meta and back": (_through_meta, 0, 0),
}


@pytest.mark.parametrize("event", EVENTS)
def test_what_an_event_leaves(event: str) -> None:
    """One test for each (state, event): what goes along, and what ends."""
    change, skipped, waits = EVENTS[event]
    layer = _skipping()
    found = change(layer)
    assert int((found if isinstance(found, nn.Module) else layer).skipped_batches) == skipped

    layer = _waiting()
    found = change(layer)
    layer = found if isinstance(found, nn.Module) else layer
    seen = vars(layer).get("pending_seen")
    assert (0 if seen is None else int(seen)) == waits
    assert list(layer.state_dict()) == list(nn.BatchNorm1d(4).state_dict())
    layer(X.to(layer.weight.dtype))
    assert int(layer.num_batches_tracked) == waits


def test_meta_load() -> None:
    """Made on the meta device, given its state, moved: nothing is left behind."""
    with torch.device("meta"):
        layer = evenly.BatchNorm1d(4)
    layer.load_state_dict(evenly.BatchNorm1d(4).state_dict(), assign=True)
    layer.to("cpu")(NAN)

    assert int(layer.skipped_batches) == 1


def test_a_counter_can_be_copied_into_and_set() -> None:
    """Read and written as an attribute."""
    layer = evenly.BatchNorm1d(4)
    layer.skipped_batches.fill_(3)
    assert int(layer.skipped_batches) == 3
    layer.skipped_batches = torch.tensor(5)
    layer(NAN)
    assert int(layer.skipped_batches) == 6
    assert evenly.BatchNorm1d(4, track_running_stats=False).skipped_batches is None


def test_compiled_counts() -> None:
    """A compiled layer counts skips and pools micro-batches as an eager one does."""
    torch._dynamo.reset()
    layer = evenly.BatchNorm1d(4, accumulate=2)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for x in (X, NAN, X, X, X):
        compiled(x)

    eager = evenly.BatchNorm1d(4, accumulate=2)
    for x in (X, NAN, X, X, X):
        eager(x)
    assert int(layer.skipped_batches) == int(eager.skipped_batches) == 1
    assert int(layer.num_batches_tracked) == int(eager.num_batches_tracked)
    torch.testing.assert_close(layer.running_mean, eager.running_mean)


def test_stacked_models_do_not_disturb_each_other() -> None:
    """Under vmap over stacked models statistics are written, and nothing is counted across models."""
    models = [evenly.BatchNorm1d(4) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    run = lambda p, b, x: torch.func.functional_call(models[0], (p, b), (x,))  # noqa: E731
    y = torch.vmap(run)(parameters, buffers, torch.stack([X, X * 2]))

    assert y.isfinite().all()
    assert buffers["num_batches_tracked"].tolist() == [1, 1]
    assert int(models[0].skipped_batches) == 0
