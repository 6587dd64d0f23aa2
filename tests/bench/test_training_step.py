"""The training-step study: the same losses before and after, or no times."""

from __future__ import annotations

import pytest
import torch
from benchmarks import networks, training_step

import evenly


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small network, measured in this process."""
    steps = (lambda: networks.mlp(6, 8, 3), lambda: (torch.randn(10, 6), torch.randint(3, (10,))))
    monkeypatch.setattr(training_step, "STEPS", {"small": steps})
    monkeypatch.setattr(training_step, "_peak", training_step._measure_memory)


def test_both_models_take_the_same_steps() -> None:
    """Losses agree to float32 rounding over all steps; times, ratio and memory of both are there."""
    found = training_step.compare("small", rounds=3)

    assert len(found["losses"]["before"]) == len(found["losses"]["after"]) == 5
    assert found["losses"]["before"][0] != found["losses"]["before"][2]  # it trains
    assert found["losses_differ_by"] < 1e-4
    assert set(found["peak_mib"]) == {"before", "after"}
    assert set(found["seconds"]) == {"before", "after", "bare"}
    assert found["nudged_losses_differ_by"] < 1e-4
    table = training_step.markdown({"rows": {"small": found}}).splitlines()
    assert len(table) == 3
    assert table[2].startswith("| small | ")


def test_the_bare_network_has_neither_norms_nor_activations() -> None:
    """What is left are its other layers, with their weights."""
    bare = training_step._bare(networks.resnet18())
    kinds = {type(module).__name__ for module in bare.modules()}

    assert not kinds & {"BatchNorm2d", "ReLU"}
    assert {"Conv2d", "Linear", "Identity"} <= kinds


def test_a_wrong_conversion_gets_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the losses part, the study stops and says by how much."""
    convert = evenly.convert

    def wrong(model: torch.nn.Module, **options: bool) -> torch.nn.Module:
        convert(model, **options)
        with torch.no_grad():
            model[1].bias.add_(1.0)  # type: ignore[index, union-attr]
        return model

    monkeypatch.setattr(evenly, "convert", wrong)
    with pytest.raises(SystemExit, match=r"small: at step \d losses differ by .* no times"):
        training_step.compare("small", rounds=1)
