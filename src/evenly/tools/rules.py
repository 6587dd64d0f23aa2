"""Rules over stored tensors: each yields findings, from what a state_dict holds and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from evenly.tools.finding import Finding
from evenly.tools.stored import Layer

RECALIBRATE = "recalibrate over some batches of training data: evenly.recalibrate(model, batches)."


def _names(layers: Iterable[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers)


def _non_finite(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    bad = {k: t for k, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())}
    if not bad:
        return
    counts = ", ".join(f"{key} ({int((~torch.isfinite(t)).sum())} of {t.numel()})" for key, t in list(bad.items())[:4])
    names = tuple(dict.fromkeys(key.rpartition(".")[0] for key in bad))
    buffers = all("running_" in key for key in bad)
    yield Finding(
        "non-finite", "error", names, f"NaN or infinity in {counts}.",
        "one non-finite batch poisons running statistics for good; evaluation returns NaN." if buffers
        else "training has diverged; no remedy brings these weights back.",
        "recalibrate: the weights are finite, only the statistics are lost; evenly's layers skip such batches."
        if buffers else "go back to an earlier checkpoint.",
    )  # fmt: skip


def _negative(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    bad = [layer for layer in layers if bool((layer.var < 0).any())]
    if bad:
        least = min(float(layer.var.min()) for layer in bad)
        yield Finding(
            "negative-variance", "error", _names(bad), f"running_var goes down to {least:.3g}.",
            "the square root of a negative number is NaN in evaluation.", RECALIBRATE,
        )  # fmt: skip


def _never_updated(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    bad = [layer for layer in layers if layer.untouched]
    if not bad:
        return
    counted = [layer for layer in bad if layer.batches]
    level = "warning" if len(bad) == len(layers) and not counted else "error"
    yield Finding(
        "never-updated", level, _names(bad),
        f"running_mean is 0 and running_var 1 in {len(bad)} of {len(layers)} layers"
        + (f", though {counted[0].batches:g} batches were counted." if counted else "."),
        "evaluation does not normalise there at all.",
        ("momentum was 0, or the statistics were reset: " if counted else "these layers never ran in training mode: ")
        + RECALIBRATE,
    )  # fmt: skip


def _counters(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    counted = [layer for layer in layers if layer.batches]
    values = Counter(layer.batches for layer in counted)
    if len(values) < 2:
        return
    few, many = min(values), max(values)  # type: ignore[type-var]
    assert few is not None
    assert many is not None
    if set(values) == {few, 2 * few}:
        twice = [layer for layer in counted if layer.batches == many]
        yield Finding(
            "double-update", "warning", _names(twice),
            f"num_batches_tracked is {many:g} in {len(twice)} layers and {few:g} in {len(counted) - len(twice)}.",
            "activation checkpointing runs the forward twice, and each batch entered twice: momentum m acts as "
            "1 − (1 − m)², so statistics follow the last batches. (A layer that is called twice looks the same.)",
            "evenly.convert(model): its layers know a recomputation; for this file, " + RECALIBRATE,
        )  # fmt: skip
        return
    usual = values.most_common(1)[0][0]
    odd = [layer for layer in counted if layer.batches != usual]
    yield Finding(
        "counters-disagree", "warning", _names(odd),
        f"num_batches_tracked is {usual:g} in {values[usual]} layers, but from "
        f"{min(layer.batches or 0 for layer in odd):g} to {max(layer.batches or 0 for layer in odd):g} in {len(odd)}.",
        "parts of the model saw other batches: frozen or in eval() for a while, added later, or called more often.",
        "if that was not intended, " + RECALIBRATE,
    )  # fmt: skip


def _unfinished(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    def left(layer: Layer) -> float:
        if not layer.batches or layer.momentum is None or not 0 < layer.momentum < 1 or layer.untouched:
            return 0.0
        rest = float((1 - layer.momentum) ** layer.batches)
        # An average that began at 1 cannot be below its rest of 1: such a variance was set, not averaged.
        return rest if not layer.usable or float(layer.var.min()) >= 0.99 * rest else 0.0

    bad = [layer for layer in layers if left(layer) > 0.05]
    if bad:
        worst = max(bad, key=left)
        yield Finding(
            "unfinished-average", "warning", _names(bad),
            f"after {worst.batches:g} batches at momentum {worst.momentum:g} the running statistics still hold "
            f"{100 * left(worst):.0f} % of their initial values 0 and 1.",
            "evaluation normalises with a mixture of the data's statistics and none.",
            RECALIBRATE + ' For training: momentum=None, or evenly\'s average="debiased".',
        )  # fmt: skip


def _momentum(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    zero = [layer for layer in layers if layer.momentum == 0]
    if zero:
        yield Finding(
            "momentum-zero", "error", _names(zero), "momentum is 0: the weight of the new batch.",
            "running statistics never move.", "set momentum=0.1; for the statistics at hand, " + RECALIBRATE,
        )  # fmt: skip
    high = [layer for layer in layers if layer.momentum is not None and layer.momentum >= 0.5]
    if high:
        value = max(layer.momentum or 0 for layer in high)
        yield Finding(
            "momentum-inverted", "warning", _names(high),
            f"momentum is {value:g}: PyTorch's is the weight of the new batch, Keras's that of the old value.",
            f"running statistics are those of the last {1 / value:.0f} batch or so, with its noise.",
            f"set momentum={max(1 - value, 0.01):g}; for the statistics at hand, " + RECALIBRATE,
        )  # fmt: skip


def _rounded(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    for dtype, level, bits in ((torch.bfloat16, "warning", 8), (torch.float16, "note", 11)):
        bad = [layer for layer in layers if layer.usable and not layer.untouched and _fits(layer, dtype)]
        if bad and not (dtype == torch.float16 and all(_fits(layer, torch.bfloat16) for layer in bad)):
            name = str(dtype).removeprefix("torch.")
            yield Finding(
                "rounded-statistics", level, _names(bad),
                f"all running statistics of {len(bad)} of {len(layers)} layers are {name} numbers ({bits} bits).",
                f"if they were trained so (model.{'bfloat16' if bits == 8 else 'half'}()), updates smaller than half a "
                "unit in the last place were lost and the average stands still before it arrives.",
                "keep running statistics in float32 (evenly's layers do), and " + RECALIBRATE,
            )  # fmt: skip


def _fits(layer: Layer, dtype: torch.dtype) -> bool:
    """Whether enough values are there, and all survive rounding to ``dtype``."""
    if layer.mean.dtype == dtype:
        return True
    values = torch.cat((layer.mean, layer.var))
    values = values[(values != 0) & (values != 1)]
    return len(values) >= 8 and bool((values.to(dtype).to(values.dtype) == values).all())


def _variance(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    usable = [layer for layer in layers if layer.usable]
    small = [layer for layer in usable if float(layer.var.median()) < layer.eps]
    if small:
        least = min(small, key=lambda layer: float(layer.var.median()))
        yield Finding(
            "eps-dominates", "warning", _names(small),
            f"the median running_var is {float(least.var.median()):.2g} in {least.name}, eps {least.eps:g}.",
            "eps, not the data, decides the scale there: inputs are not brought to unit variance.",
            "scale the inputs up, set a smaller eps, or look why these activations vanish.",
        )  # fmt: skip
    dead = [layer for layer in usable if layer not in small and bool((layer.var < 1e-3 * layer.eps).any())]
    if dead:
        share = max(float((layer.var < 1e-3 * layer.eps).float().mean()) for layer in dead)
        number = sum(int((layer.var < 1e-3 * layer.eps).sum()) for layer in dead)
        gain = max(layer.eps**-0.5 for layer in dead)
        yield Finding(
            "constant-channels", "warning" if share >= 0.25 else "note", _names(dead),
            f"{number} channels have (almost) no variance, up to {100 * share:.0f} % of a layer.",
            f"they carry nothing, and a value that does differ at test time is multiplied by up to {gain:.0f}.",
            "dead units before the norm, or constant inputs: leave those channels out.",
        )  # fmt: skip


def _weights(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    weighted = [layer for layer in layers if layer.weight is not None and layer.batches != 0]
    dead = [layer for layer in weighted if bool((layer.weight.abs() < 1e-6).any())]  # type: ignore[union-attr]
    if dead:
        share = [float((layer.weight.abs() < 1e-6).float().mean()) for layer in dead]  # type: ignore[union-attr]
        yield Finding(
            "dead-weight", "warning" if max(share) == 1 else "note", _names(dead),
            f"weight is 0 in up to {100 * max(share):.0f} % of a layer's channels.",
            "these channels give their bias, whatever the input"
            + ("; a whole layer is switched off." if max(share) == 1 else "; weight decay prunes so."),
            "a whole layer: look whether it was trained at all. Single channels: nothing, or remove them.",
        )  # fmt: skip
    flipped = [layer for layer in weighted if float((layer.weight < 0).float().mean()) > 0.5]  # type: ignore[operator, union-attr]
    if flipped:
        yield Finding(
            "sign-flipped", "warning", _names(flipped),
            f"most weights are negative in {len(flipped)} layers.",
            "weights start at 1 and seldom cross 0: they may come from a library that uses |weight| (InPlace-ABN).",
            "if so, take the absolute value plus eps of these weights.",
        )  # fmt: skip


def _redundant_bias(layers: list[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    bad = [layer for layer in layers if layer.bias_before]
    if bad:
        number = sum(len(layer.mean) for layer in bad)
        yield Finding(
            "redundant-bias", "note", _names(bad),
            f"by their names, {bad[0].bias_before} and {len(bad) - 1} more stand before a norm: {number} numbers.",
            "the norm subtracts the mean, and the bias with it; its gradient is zero.",
            "build those layers with bias=False; evenly.convert(model, drop_bias=True) does it for a model.",
        )  # fmt: skip


RULES: tuple[Callable[[list[Layer], Mapping[str, Tensor]], Iterator[Finding]], ...] = (
    _non_finite, _negative, _never_updated, _momentum, _counters, _unfinished, _rounded, _variance, _weights,
    _redundant_bias,
)  # fmt: skip
