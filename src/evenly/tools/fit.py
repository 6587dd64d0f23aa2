"""A file loaded into a model: whatever stands before its keys, and whichever of its sets it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from evenly.tools import checkpoint
from evenly.tools.checkpoint import Checkpoint

_WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into names


@dataclass(frozen=True)
class Fit:
    """How a file fits a model.

    Args:
        file: the file, read for the set that fits.
        keys: the file's key for each key of the model's.
        said: which set was used, and which others there are; empty where there is one.
    """

    file: Checkpoint
    keys: Mapping[str, str]
    said: str


def load(model: nn.Module, file: Checkpoint, inside: str | None = None) -> Fit:
    """Load a file into a model.

    Of several sets that fit, the first in the file's order is used, unless ``inside`` names another.

    Args:
        model: its tensors are overwritten.
        file: as read.
        inside: a set of the file's, a prefix of its keys, or both as ``SET/PREFIX``.

    Raises:
        ValueError: no set of the file holds all of the model's tensors, in their shapes.
    """
    state = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = list(_fits(state, file))
    asked = [fit for fit in found if inside is None or inside.rstrip(".") in _names(*fit)]
    if not found:
        raise ValueError(_misfit(state, file))
    if not asked:
        known = ", ".join(repr(_name(where, prefix)) for where, prefix in found)
        raise ValueError(f"{file.path.name} has no set {inside!r} that fits the model; these fit: {known}.")
    where, prefix = asked[0]
    if where != file.inside:
        file = checkpoint.read(file.path, inside=where)
    theirs = _plain(file.tensors)
    keys = {key: theirs[prefix + plain] for plain, key in _plain(state).items() if prefix + plain in theirs}
    model.load_state_dict({key: file.tensors[name] for key, name in keys.items()}, strict=False)
    others = [_name(*fit) for fit in found if fit != asked[0]]
    said = f"loaded {_name(where, prefix)} of {file.path.name}; --inside chooses another that fits: {', '.join(others)}"
    return Fit(file, keys, said if others else "")


def _name(where: str, prefix: str) -> str:
    return "/".join(part for part in (where, prefix.rstrip(".")) if part) or "the whole file"


def _names(where: str, prefix: str) -> set[str]:
    return {_name(where, prefix), where, prefix.rstrip(".")} - {""}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys by their names without wrappers, where that keeps them apart."""
    named = {".".join(p for p in key.split(".") if p not in _WRAPPERS): key for key in tensors}
    return named if len(named) == len(tensors) else {key: key for key in tensors}


def _fits(state: Mapping[str, Tensor], file: Checkpoint) -> Iterator[tuple[str, str]]:
    """Every set and prefix that holds all of the model's tensors, in the file's order."""
    wanted = {
        plain: state[key].shape for plain, key in _plain(state).items() if not key.endswith("num_batches_tracked")
    }
    if not wanted:
        yield file.inside, ""
        return
    groups = [(g.inside, g.tensors) for g in file.groups] or [(file.inside, file.tensors)]
    groups.sort(key=lambda g: g[0] != file.inside)  # the one that was read comes first
    first = next(iter(wanted))
    for where, tensors in groups:
        theirs = _plain(tensors)
        for prefix in dict.fromkeys(key.removesuffix(first) for key in theirs if key.endswith(first)):
            if all(
                (name := theirs.get(prefix + p)) is not None and tensors[name].shape == s for p, s in wanted.items()
            ):
                yield where, prefix


def _misfit(state: Mapping[str, Tensor], file: Checkpoint) -> str:
    """What does not fit, by the prefix that fits most; the likely renaming where the file has other names."""
    ours, theirs = _plain(state), _plain(file.tensors)
    wanted = [plain for plain, key in ours.items() if not key.endswith("num_batches_tracked")]
    prefixes = {""} | {key.removesuffix(p) for p in wanted[:20] for key in theirs if key.endswith("." + p)}
    prefix = min(sorted(prefixes), key=lambda f: sum(f + p not in theirs for p in wanted))
    missing = [p for p in wanted if prefix + p not in theirs]
    start = f"{file.path.name} does not fit the model: "
    if not missing:
        plain = next(p for p in wanted if file.tensors[theirs[prefix + p]].shape != state[ours[p]].shape)
        shapes = tuple(file.tensors[theirs[prefix + plain]].shape), tuple(state[ours[plain]].shape)
        return f"{start}{ours[plain]} has shape {shapes[0]}, not {shapes[1]}."
    known = {prefix + p for p in wanted}
    spare = [key for key in theirs if key not in known and not key.endswith("num_batches_tracked")]
    text = f"{start}it has no {ours[missing[0]]!r}, nor with a prefix"
    if len(missing) < len(wanted) or len(spare) == len(missing):
        text += f" ({len(missing)} of {len(wanted)} are missing: {', '.join(missing[:3])})"
        if spare:
            text += f"; it has instead {', '.join(spare[:3])}"
        pairs = _renaming(missing, spare, prefix, state, ours, file, theirs)
        text += f"; likely {pairs}" if pairs else ""
    return text + "."


def _renaming(
    missing: list[str], spare: list[str], prefix: str, state: Mapping[str, Tensor], ours: Mapping[str, str],
    file: Checkpoint, theirs: Mapping[str, str],
) -> str:  # fmt: skip
    """Names that differ in their last part alone, with equal shapes."""
    found: dict[tuple[str, str], int] = {}
    for want in missing:
        head, _, last = want.rpartition(".")
        for key in spare:
            other, _, name = key.removeprefix(prefix).rpartition(".")
            if other == head and file.tensors[theirs[key]].shape == state[ours[want]].shape:
                found[name, last] = found.get((name, last), 0) + 1
    usual = {"gamma": "weight", "beta": "bias", "scale": "weight", "moving_mean": "running_mean",
             "moving_variance": "running_var", "moving_var": "running_var"}  # fmt: skip
    named = [(a, b) for a, b in found if usual.get(a) == b] or [pair for pair in found if len(found) == 1]
    return ", ".join(f"{a} is {b}" for a, b in named)
