"""The sets of tensors in a checkpoint, and the sets of norms in those: model, averaged copy, teacher, critic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from evenly.tools.arrays import Pickled
from evenly.tools.pickles import Stub
from evenly.tools.rebuild import Budget, attributes, module_settings, module_tensors

if TYPE_CHECKING:
    from evenly.tools.checkpoint import Checkpoint

_DEEPEST = 16
# Networks side by side in one dictionary that need not look alike.
_ROLES = re.compile(
    r"(.*_)?(ema|swa|avg|averaged|shadow|teacher|student|target|online|momentum|mean_teacher|generator|discriminator|"
    r"critic|actor|encoder_[qk]|[gd]|net_?[gd])(_.*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Group:
    """A set of named tensors in a file.

    Args:
        inside: where it is, such as ``"state_dict_ema"``; ``""`` is the top.
        tensors: by key.
        settings: ``eps`` and ``momentum`` by layer, where it is a whole module.
    """

    inside: str
    tensors: dict[str, Tensor]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def optimizer(self) -> bool:
        """Whether it is a part of an optimizer."""
        return "optim" in self.inside


@dataclass(frozen=True)
class NormSet:
    """Running statistics that belong to one network.

    Args:
        inside: the set of the file that they are in (`Group.inside`).
        prefix: what their keys begin with, such as ``"ema_model."``, where several networks share the set.
        count: norms with running statistics.
        tensors: those of the network, by their keys in the file.
    """

    inside: str
    prefix: str
    count: int
    tensors: dict[str, Tensor] = field(repr=False)


def sets(checkpoint: Checkpoint) -> list[NormSet]:
    """Every set of running statistics in a file, in the file's order.

    Example:
        >>> import tempfile, torch
        >>> from evenly.tools import checkpoint
        >>> norm = torch.nn.BatchNorm1d(2).state_dict()
        >>> twins = {f"{name}.bn.{k}": v for name in ("model", "model_ema") for k, v in norm.items()}
        >>> torch.save({"epoch": 3, "net": twins}, file := f"{tempfile.mkdtemp()}/m.pt")
        >>> [(s.inside, s.prefix, s.count) for s in sets(checkpoint.read(file))]
        [('net', 'model.', 1), ('net', 'model_ema.', 1)]
    """
    found = []
    for group in checkpoint.groups:
        for prefix in _networks(group.tensors):
            tensors = {key: t for key, t in group.tensors.items() if key.startswith(prefix)}
            count = sum(key.endswith("running_mean") for key in tensors)
            if count:
                found.append(NormSet(group.inside, prefix, count, tensors))
    return found


def _networks(tensors: dict[str, Tensor]) -> list[str]:
    """The prefixes of the networks that share a set: [""] where it is one."""
    common = _common(tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        head, dot, rest = key[len(common) :].partition(".")
        parts.setdefault(head if dot else "", {})[rest if dot else head] = tensor
    normed = {head: part for head, part in parts.items() if any(key.endswith("running_mean") for key in part)}
    if len(normed) < 2 or not (all(_ROLES.fullmatch(head) for head in normed) or _alike(normed)):
        return [""]
    return [f"{common}{head}." if head else common for head in normed]


def _common(keys: Iterable[str]) -> str:
    """The parts that all names begin with, such as ``"module."``."""
    split = [key.split(".") for key in keys]
    common = []
    for level in zip(*(parts[:-1] for parts in split), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "".join(f"{part}." for part in common)


def _alike(parts: dict[str, dict[str, Tensor]]) -> bool:
    """Whether the parts are copies of one network: equal names and shapes inside, names that are no count.

    The stages of a network are ``layer1`` and ``layer2``: they differ by a number alone.
    """
    shapes = [{key: tensor.shape for key, tensor in part.items()} for part in parts.values()]
    words = {re.sub(r"\d+", "", head) for head in parts}
    return len(words) == len(parts) and all(shape == shapes[0] for shape in shapes)


def named_tensors(content: Any, budget: Budget) -> list[Group]:
    """Every set of named tensors in what a file holds, each object looked at once."""
    found: list[Group] = []
    arrays = Pickled(budget)
    seen: set[int] = set()
    waiting: list[tuple[Any, tuple[str, ...]]] = [(content, ())]
    while waiting:
        value, where = waiting.pop()
        if id(value) in seen or len(where) > _DEEPEST or not isinstance(value, (Stub, dict, list, tuple)):
            continue
        seen.add(id(value))
        if "_modules" in attributes(value):
            found.append(Group(".".join(where), module_tensors(value), module_settings(value)))
            continue
        items = _items(value)
        named = isinstance(value, (dict, Stub))
        tensors = {
            key: t for key, v in items.items() if (t := v if isinstance(v, Tensor) else arrays.tensor(v)) is not None
        }
        if tensors and named:
            found.append(Group(".".join(where), tensors))
        waiting += [(v, (*where, key)) for key, v in reversed(items.items()) if key not in tensors]
    return found


def _items(value: Any) -> dict[str, Any]:
    """What a container holds, by name; the items of a list by their number."""
    if isinstance(value, (list, tuple)):
        return {str(i): item for i, item in enumerate(value)}
    plain = value if isinstance(value, dict) else {**attributes(value), **(value.items or {})}
    return {key: item for key, item in plain.items() if isinstance(key, str)}
