"""The rules: where a scale and a shift may go, towards the layer before or the layers behind.

A scale and shift travel as two tensors with as many axes as the value, of size 1 where they are
constant. Each rule is one method, and its condition of exactness is its first lines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from evenly.tools.fold import calls
from evenly.tools.fold.moving import batch_stays, moved
from evenly.tools.fold.norms import Refused
from evenly.tools.fold.steps import (
    PASSES,
    Path,
    Step,
    count,
    edge_of,
    full,
    has_border,
    repeats,
    rule_before,
    rule_behind,
    small,
    told,
)
from evenly.tools.fold.trial import pad_pairs
from evenly.tools.fold.work import Work


class Push:
    """The rules over one graph."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def spread(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """A norm's scale and shift, with as many axes as its value."""
        norm = self.work.norms[node]
        shape = [1] * len(self.work.shape(node))
        if not len(shape) or norm.channel >= len(shape):
            raise Refused("its input has no channel axis")
        shape[norm.channel] = -1
        return norm.scale.reshape(shape), norm.shift.reshape(shape)

    # ---- towards the layer before

    def backward(self, node: Any, a: Tensor, b: Tensor, reader: fx.Node, path: Path) -> None:
        """Fold into what gives ``node``'s value, which ``reader`` reads."""
        work = self.work
        node = work.source(node)
        if not isinstance(node, fx.Node) or node.op in ("placeholder", "get_attr"):
            raise Refused("its input is the model's" if isinstance(node, fx.Node) else "its input is no tensor")
        self._alone(node, reader)
        path.region.add(node)
        if node in work.layers:
            layer = work.layers[node]
            axis = layer.axis(len(work.shape(node)))
            path.steps.append(Step(node, "outputs", *self._along(a, b, axis, layer.outputs, node)))
            path.use(rule_before(layer))
            return
        if node in work.norms:
            norm = work.norms[node]
            along = self._along(a, b, norm.channel, len(norm.scale), node)
            path.steps.append(Step(node, "norm before", *along))
            path.use("norm after norm")
            return
        kind = calls.kind_of(node, work.root)
        rule = getattr(self, f"_back_{kind}", None)
        if kind is None or rule is None:
            raise Refused(f"{calls.name_of(node, work.root)} stands between")
        rule(node, a, b, path)
        path.use(PASSES.get(kind, kind))

    def _alone(self, node: fx.Node, reader: fx.Node) -> None:
        work = self.work
        if node in work.unsafe:
            raise Refused(f"{work.name(node)} is written in place through a view")
        others = [u for u in work.readers(node) if u is not reader]
        if others:
            names = ", ".join(sorted({told(work, u) for u in others})[:3])
            raise Refused(f"{told(work, node)} is also read by {names}")
        if [work.source(n) for n in reader.all_input_nodes].count(node) + repeats(reader, node) > 1:
            raise Refused(f"{work.name(node)} is read twice")

    def _back_same(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        self.backward(node.args[0], a, b, node, path)

    def _back_scales(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        if bool(b.any()):
            raise Refused(f"{calls.name_of(node, self.work.root)} stands between, and the shift is not 0")
        if bool((a < 0).any()):
            raise Refused(f"{calls.name_of(node, self.work.root)} stands between, and a scale is negative")
        self.backward(node.args[0], a, b, node, path)

    def _back_means(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        a, b = self._unreduced(node, a, b)
        self.backward(node.args[0], a, b, node, path)

    def _back_greatest(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        if bool((a < 0).any()):
            raise Refused(f"{calls.name_of(node, self.work.root)} stands between, and a scale is negative")
        self._back_means(node, a, b, path)

    def _unreduced(self, node: fx.Node, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A scale of the output as one of the input, of which some axes were averaged or removed."""
        shape, out = self.work.shape(node.args[0]), self.work.shape(node)  # type: ignore[arg-type]
        along = calls.touched(node, self.work.root, shape, out)
        if len(out) != len(shape):
            sizes = [1 if axis in along else shape[axis] for axis in range(len(shape))]
            a, b = (full(t, out).reshape(sizes) for t in (a, b))
            a, b = small(a), small(b)
        self._constant_along(node, a, b, along)
        return a, b

    def _constant_along(self, node: fx.Node, a: Tensor, b: Tensor, along: set[int]) -> None:
        if any(t.shape[axis] > 1 for t in (a, b) for axis in along):
            raise Refused(f"{calls.name_of(node, self.work.root)} mixes the norm's channels")

    def _back_moves(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        source: Any = node.args[0]
        shape = self.work.shape(source)
        batch_stays(self.work, node, a, b)
        places = moved(self.work, node, torch.arange(count(shape)).reshape(shape))
        if not isinstance(places, Tensor) or places.numel() != count(shape):
            raise Refused(f"{calls.name_of(node, self.work.root)} takes a part, and others may take the rest")
        found = []
        for tensor in (a, b):
            flat = torch.empty(count(shape), dtype=torch.float64)
            flat[places.flatten()] = full(tensor, tuple(places.shape)).flatten()
            found.append(small(flat.reshape(shape)))
        self.backward(source, found[0], found[1], node, path)

    def _back_cat(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        parts, axis = self._parts(node)
        if len(set(parts)) < len(parts):
            raise Refused("a concatenation reads one value twice")
        begin = 0
        try:
            for part in parts:
                size = self.work.shape(part)[axis]
                cut = [t.narrow(axis, begin, size) if t.shape[axis] > 1 else t for t in (a, b)]
                begin += size
                self.backward(part, cut[0], cut[1], node, path)
        except Refused as reason:
            raise Refused(f"its input is a concatenation ({self.work.name(node)}): {reason}") from None

    def _parts(self, node: fx.Node) -> tuple[list[fx.Node], int]:
        given = calls.named(node)
        parts: Any = given.get("tensors", node.args[0])
        axis = given.get("dim", given.get("axis", 0))
        if not isinstance(parts, (tuple, list)) or not all(isinstance(p, fx.Node) for p in parts):
            raise Refused("a concatenation of an unknown number of parts")
        return [self.work.source(p) for p in parts], int(axis) % len(self.work.shape(node))

    def _back_add(self, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        given: list[Any] = list(node.args[:2])
        parts: list[Any] = [self.work.source(p) for p in given]
        shapes = {self.work.shape(p) if isinstance(p, fx.Node) else None for p in parts}
        if len(node.args) != 2 or shapes != {self.work.shape(node)}:
            raise Refused(f"{self.work.name(node)} adds a constant, or broadcasts")
        try:
            self.backward(parts[0], a, b, node, path)
            self.backward(parts[1], a, torch.zeros_like(b), node, path)
        except Refused as reason:
            raise Refused(f"its input is a sum ({self.work.name(node)}): {reason}") from None

    # ---- towards the layers behind

    def forward(self, node: fx.Node, a: Tensor, b: Tensor, path: Path, value: fx.Node | None = None) -> None:
        """Fold into all that reads ``node``; its value becomes what stood before the norm."""
        readers = self.work.readers(node)
        if node in self.work.unsafe:
            raise Refused(f"{self.work.name(node)} is written in place through a view")
        if not readers:
            raise Refused("nothing reads it")
        for reader in readers:
            self._through(reader, node, a, b, path)

    def _through(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        work = self.work
        if reader.op == "output":
            raise Refused("its output is the model's")
        if reader in work.unsafe:
            raise Refused(f"{work.name(reader)} is written in place through a view")
        path.region.add(reader)
        first: Any = reader.args[0] if reader.args else None
        if reader in work.layers and work.source(first) is node:
            self._into_inputs(reader, node, a, b, path)
            return
        if reader in work.norms and reader not in work.bypassed:
            norm = work.norms[reader]
            path.steps.append(Step(reader, "norm behind", *self._along(a, b, norm.channel, len(norm.scale), node)))
            path.use("norm before norm")
            return
        kind = calls.kind_of(reader, work.root)
        rule = getattr(self, f"_on_{kind}", None)
        if kind is None or rule is None:
            raise Refused(f"{calls.name_of(reader, work.root)} follows")
        rule(reader, node, a, b, path)
        path.use(PASSES.get(kind, kind))

    def _into_inputs(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        layer = self.work.layers[reader]
        scale, shift = self._along(a, b, layer.axis(len(self.work.shape(node))), layer.inputs, node)
        if layer.transposed and bool(shift.any()):
            raise Refused(f"{self.work.name(reader)} is transposed: a shift before it is no constant behind it")
        path.use(rule_behind(layer, shift))
        if has_border(layer) and (bool(shift.any()) or layer.edges is not None):
            edge = layer.edges if layer.edges is not None else torch.zeros_like(shift)
            edge_of(edge, scale, shift, self.work.name(reader))
        path.steps.append(Step(reader, "inputs", scale, shift))

    def _on_same(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        self.forward(reader, a, b, path)

    def _on_scales(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        name = calls.name_of(reader, self.work.root)
        if bool(b.any()):
            raise Refused(f"{name} follows, and the shift is not 0")
        if bool((a < 0).any()):
            raise Refused(f"{name} follows, and a scale is negative")
        self.forward(reader, a, b, path)

    def _on_means(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        shape, out = self.work.shape(node), self.work.shape(reader)
        along = calls.touched(reader, self.work.root, shape, out)
        self._constant_along(reader, a, b, along)
        if len(out) != len(shape):
            kept = [axis for axis in range(len(shape)) if axis not in along]
            a, b = (t.reshape([t.shape[axis] for axis in kept]) for t in (a, b))
        self.forward(reader, a, b, path)

    def _on_greatest(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        if bool((a < 0).any()):
            raise Refused(f"{calls.name_of(reader, self.work.root)} follows, and a scale is negative")
        self._on_means(reader, node, a, b, path)

    def _on_moves(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        shape = self.work.shape(node)
        batch_stays(self.work, reader, a, b)
        after = [moved(self.work, reader, full(t, shape)) for t in (a, b)]
        if isinstance(after[0], Tensor):
            self.forward(reader, small(after[0]), small(after[1]), path)
            return
        for item in self.work.readers(reader):
            path.region.add(item)
            if calls.short(item) != "getitem" or not isinstance(item.args[1], int):
                raise Refused(f"{calls.name_of(item, self.work.root)} follows a split")
            self.forward(item, small(after[0][item.args[1]]), small(after[1][item.args[1]]), path)

    def _on_cat(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        parts, axis = self._parts(reader)
        ndim = len(self.work.shape(reader))
        if any(t.shape[k] > 1 for t in (a, b) for k in range(ndim) if k != axis):
            raise Refused("a concatenation along another axis than the channels")
        scales, shifts = [], []
        for part in parts:
            size = [1] * ndim
            size[axis] = self.work.shape(part)[axis]
            own = part is node
            scales.append(a.expand(size) if own else torch.ones(size, dtype=torch.float64))
            shifts.append(b.expand(size) if own else torch.zeros(size, dtype=torch.float64))
        try:
            self.forward(reader, torch.cat(scales, axis), torch.cat(shifts, axis), path)
        except Refused as reason:
            raise Refused(f"a concatenation follows: {reason}") from None

    def _on_pad(self, reader: fx.Node, node: fx.Node, a: Tensor, b: Tensor, path: Path) -> None:
        shape = self.work.shape(node)
        channels = shape[1] if len(shape) > 2 else 0
        pairs = pad_pairs(self.work, reader)
        if len(pairs) > len(shape) - 2 or any(p < 0 for pair in pairs for p in pair):
            raise Refused(f"{calls.name_of(reader, self.work.root)} pads other axes, or cuts")
        scale, shift = self._along(a, b, 1, channels, node)
        value = float(calls.settings(reader, self.work.root).get("value") or 0.0)
        old = self.work.edges.get(reader, torch.full_like(shift, value))
        edge_of(old, scale, shift, self.work.name(reader))
        path.steps.append(Step(reader, "edges", scale, shift))
        self.forward(reader, a, b, path)

    # ---- what both directions need

    def _along(self, a: Tensor, b: Tensor, axis: int, size: int, node: fx.Node) -> tuple[Tensor, Tensor]:
        """The scale and shift as vectors, if they change along ``axis`` alone."""
        if any(t.shape[k] > 1 for t in (a, b) for k in range(t.ndim) if k != axis):
            raise Refused(f"the norm's channels lie along another axis than those of {self.work.name(node)}")
        return a.flatten().expand(size).clone(), b.flatten().expand(size).clone()
