"""Folding, one norm after another: planned, tried, proved, and only then done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from evenly.tools.fold import calls
from evenly.tools.fold.layers import Layer
from evenly.tools.fold.norms import Refused
from evenly.tools.fold.push import Push
from evenly.tools.fold.steps import Path, take
from evenly.tools.fold.trial import Errors, Trial
from evenly.tools.fold.work import Work


def fold_all(work: Work) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Fold every norm that can be folded exactly.

    Returns:
        The certificate's entries: what was folded, and what was refused.
    """
    folds: list[dict[str, Any]] = []
    reasons: dict[fx.Node, str] = {}
    again = True
    while again:
        again = False
        for node in [n for n in work.graph.nodes if n in work.norms]:
            if node not in work.norms:
                continue
            try:
                folds.append(fold_one(work, node))
                again = True
                reasons.pop(node, None)
            except Refused as reason:
                reasons[node] = str(reason)
        merged = merge_all(work)
        folds += merged
        again = again or bool(merged)
    left = {node: reasons[node] for node in work.graph.nodes if node in reasons and _is_norm(work, node)}
    refused = [{"where": work.name(node), "reason": reason} for node, reason in (left | work.unread).items()]
    return folds, refused


def _is_norm(work: Work, node: fx.Node) -> bool:
    """Whether a refusal is worth a word: an exported program's constants are norms only inside one."""
    if node not in work.arithmetic:
        return True
    stack = node.meta.get("nn_module_stack") or {}
    return bool(stack) and "orm" in str(list(stack.values())[-1][1])


def fold_one(work: Work, node: fx.Node) -> dict[str, Any]:
    """Fold one norm into the layer before or, if that cannot be, into the layers behind.

    Raises:
        Refused: neither can be; the reason names both.
    """
    reasons = []
    for direction in ("backward", "forward"):
        kept, name = work.kept(), work.name(node)
        try:
            path, errors = _attempt(work, node, direction)
        except Refused as reason:
            work.restore(kept)
            reasons.append(str(reason))
            continue
        entry = _entry(work, path, name, errors)
        if node in work.arithmetic:
            entry["rule"] = entry["rule"].replace("norm ", "scale and shift ")
        put: Any = node.args[0]
        work.take_out(node, put)
        return entry
    raise Refused("; ".join(dict.fromkeys(reasons)))


def _attempt(work: Work, node: fx.Node, direction: str) -> tuple[Path, Errors]:
    push, path = Push(work), Path()
    a, b = push.spread(node)
    if node in work.unsafe:
        raise Refused("its value is written in place through a view")
    before: Any = node.args[0]
    if direction == "backward":
        push.backward(before, a, b, node, path)
        outputs, after = [node], [before]
    else:
        push.forward(node, a, b, path)
        outputs = after = [s.node for s in path.steps if s.where in ("inputs", "norm behind")]
    path.region.add(node)
    trial = Trial(work, path.region, outputs, _rounded(work, path))
    for step in path.steps:
        take(work, step)
    work.bypassed[node] = before
    errors = trial.errors(after, _terms(work, path.region))
    _remember(work, trial)
    return path, errors


def _remember(work: Work, trial: Trial) -> None:
    work.values.update(trial.now)


def _rounded(work: Work, path: Path) -> torch.dtype:
    for step in path.steps:
        if step.node in work.layers:
            return work.layers[step.node].dtype
    value = work.values[path.steps[0].node]
    return value.dtype if isinstance(value, Tensor) else torch.float32


def _terms(work: Work, region: set[fx.Node]) -> int:
    return sum(work.layers[n].terms for n in region if n in work.layers)


def _entry(work: Work, path: Path, name: str, errors: Errors) -> dict[str, Any]:
    into = list(dict.fromkeys(work.name(s.node) for s in path.steps))
    return {
        "into": into, "from": name, "rule": ", ".join(path.rules),
        "error_example": errors.example, "error_random": errors.random, "bound": errors.bound,
    }  # fmt: skip


# ---- branches


def merge_all(work: Work) -> list[dict[str, Any]]:
    """Sums of convolutions (and norms, and the input itself) of one input become one convolution."""
    entries = []
    for node in list(work.graph.nodes):
        if node in work.values and calls.kind_of(node, work.root) == "add" and not _inner(work, node):
            kept = work.kept()
            try:
                entries.append(_merge(work, node))
            except Refused:
                work.restore(kept)
    return entries


def _inner(work: Work, node: fx.Node) -> bool:
    """Whether the sum is a part of another."""
    readers = list(node.users)
    return len(readers) == 1 and calls.kind_of(readers[0], work.root) == "add"


def _leaves(work: Work, node: fx.Node, sums: list[fx.Node]) -> list[Any]:
    """What a tree of sums adds up."""
    sums.append(node)
    if len(node.args) != 2 or node.kwargs or node in work.unsafe:
        raise Refused("not a plain sum")
    found: list[Any] = []
    for part in node.args:
        while isinstance(part, fx.Node) and len(part.users) == 1 and calls.kind_of(part, work.root) == "same":
            sums.append(part)
            part = part.args[0]
        inner = isinstance(part, fx.Node) and calls.kind_of(part, work.root) == "add" and len(part.users) == 1
        found += _leaves(work, part, sums) if inner and isinstance(part, fx.Node) else [part]
    return [part for part in found if not (isinstance(part, (int, float)) and part == 0)]


def _merge(work: Work, node: fx.Node) -> dict[str, Any]:
    sums: list[fx.Node] = []
    leaves = _leaves(work, node, sums)
    layers = [n for n in leaves if n in work.layers]
    if not layers or not all(isinstance(n, fx.Node) for n in leaves):
        raise Refused("not branches")
    source = layers[0].args[0]
    scaled = [n for n in leaves if n in work.norms]
    plain = [n for n in leaves if n is source]
    if (
        len(layers) + len(scaled) < 2
        or len(layers) + len(scaled) + len(plain) < len(leaves)
        or not (scaled or any(work.layers[n].changed for n in layers))
    ):
        raise Refused("not branches")
    for leaf in {*layers, *scaled}:
        if leaf.args[0] is not source or len(leaf.users) != 1 or leaves.count(leaf) > 1:
            raise Refused("branches that others read, or of another input")
    into = max(layers, key=lambda n: work.layers[n].weight.numel())
    region = {*leaves, *sums} - {source}
    trial = Trial(work, region, [node], work.layers[into].dtype)
    terms = _terms(work, region)
    names = [work.name(n) for n in leaves if n is not into]
    _sum_into(work, into, [n for n in layers if n is not into], scaled, len(plain))
    work.bypassed[node] = into
    errors = trial.errors([into], terms)
    _remember(work, trial)
    work.take_out(node, into)
    dead = {*sums[1:], *leaves} - {into, source}
    for gone in [n for n in reversed(work.graph.nodes) if n in dead]:
        work.erase(gone)
    entry = _entry(work, Path(), "", errors)
    return {**entry, "into": [work.name(into)], "from": ", ".join(names), "rule": "sum of branches"}


def _sum_into(work: Work, into: fx.Node, others: list[fx.Node], scaled: list[fx.Node], plain: int) -> None:
    layer = work.layers[into]
    _joinable(work, layer, into)
    weight, bias = layer.weight.clone(), torch.zeros(layer.outputs, dtype=torch.float64)
    if layer.bias is not None:
        bias = bias + layer.bias
    for node in others:
        other = work.layers[node]
        _joinable(work, other, node)
        weight[(slice(None), slice(None), *_centre(layer, other))] += other.weight
        if other.bias is not None:
            bias += other.bias
    diagonal = torch.full((layer.outputs,), float(plain), dtype=torch.float64)
    for node in scaled:
        norm = work.norms[node]
        if norm.channel != layer.axis(len(work.shape(into))):
            raise Refused("channels elsewhere")
        diagonal, bias = diagonal + norm.scale, bias + norm.shift
    if scaled or plain:
        if layer.inputs != layer.outputs or work.shape(into) != work.shape(into.args[0]):  # type: ignore[arg-type]
            raise Refused("an identity of another shape")
        places = _identity_places(layer)
        weight[places] += diagonal
    layer.weight, layer.bias, layer.changed = weight, bias, True


def _identity_places(layer: Layer) -> tuple[Any, ...]:
    """Where a kernel that copies its input has its ones."""
    channels = torch.arange(layer.outputs)
    centre = []
    for k, (size, (low, high)) in enumerate(zip(layer.weight.shape[2:], layer.pads(), strict=True)):
        dilation, stride = layer.like.dilation[k], layer.like.stride[k]
        if stride != 1 or low % dilation or low != high or low // dilation >= size:
            raise Refused("an identity that is no kernel of this shape")
        centre.append(low // dilation)
    return (channels, channels % layer.weight.shape[1], *centre)


def _joinable(work: Work, layer: Layer, node: fx.Node) -> None:
    zeros = getattr(layer.like, "padding_mode", "zeros") == "zeros"
    if layer.transposed or not zeros or layer.edges is not None or node in work.unsafe:
        raise Refused("transposed, or padded otherwise")


def _centre(big: Layer, small: Layer) -> list[slice]:
    """Where the smaller kernel lies in the bigger."""
    same = ("stride", "dilation", "groups")
    if big.cls is not small.cls or big.weight.shape[:2] != small.weight.shape[:2]:
        raise Refused("branches of other channels")
    if any(getattr(big.like, s, None) != getattr(small.like, s, None) for s in same if s != "dilation"):
        raise Refused("branches of other strides or groups")
    places = []
    sizes = zip(big.weight.shape[2:], small.weight.shape[2:], big.pads(), small.pads(), strict=True)
    for axis, (k, j, (p, _), (q, _)) in enumerate(sizes):
        dilation = big.like.dilation[axis]
        if j > 1 and small.like.dilation[axis] != dilation:
            raise Refused("branches of other dilations")
        offset = (p - q) // dilation
        if (
            (p - q) % dilation
            or offset < 0
            or offset + j > k
            or big.pads()[axis][1] - small.pads()[axis][1] != (k - j - offset) * dilation
        ):
            raise Refused("kernels that do not lie on each other")
        places.append(slice(offset, offset + j))
    return places
