"""What was examined, and what could not be seen: silence is not health."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from evenly.tools.finding import listed
from evenly.tools.probe import Subject
from evenly.tools.sites import instance_norms, modules


def examined(subject: Subject, said: str) -> tuple[list[str], bool]:
    """Lines that say what was looked at, and whether any norm with running statistics was."""
    used, both = subject.evaluation.used, {**subject.evaluation.used, **subject.training.used}
    lines = [_norms(subject, set(both)), *_others(subject)]
    never = [n for n in subject.sites if n not in both and n not in subject.unseen]
    held = [n for n in both if n not in subject.switching and used.get(n) == "running"]
    if held:
        lines.append(
            f"{_number(len(held))} kept in evaluation form by train(), so that both forms are one: {_some(held)}"
        )
    if never:
        lines.append(f"{_number(len(never))} never called with this batch: {_some(never)}")
    if subject.unseen:
        lines.append(
            f"{_number(len(subject.unseen))} not seen, as they compute by themselves and not by the formula: "
            f"{_some(sorted(subject.unseen))}"
        )
    if subject.evaluation.unknown:
        lines.append(f"batch statistics without running ones were used in {_some(list(subject.evaluation.unknown))}")
    if subject.unrun:
        lines.append(f"train() could not be run ({subject.unrun}); what each norm would use is taken from its flags")
    if any(isinstance(m, torch.jit.ScriptModule) for m in subject.model.modules()):
        lines.append("a scripted program: its norms are seen, but not by the modules that call them")
    if said not in ("", "model(batch)", "model(batch[0])"):
        lines.append(f"called as {said}")
    return lines, bool(both)


def _number(n: int) -> str:
    return f"{n} batch norm{'s' * (n != 1)}"


def _some(names: list[str]) -> str:
    return listed(tuple(names))


def _norms(subject: Subject, seen: set[str]) -> str:
    if not subject.sites:
        return "examined: no batch norm with running statistics"
    hidden = sum(not site.registered for site in subject.sites.values())
    text = f"examined: {_number(len(subject.sites))}, {len(seen)} seen in use"
    return text + (f", {hidden} out of reach of eval() and state_dict()" if hidden else "")


def _others(subject: Subject) -> list[str]:
    """Norms of other kinds, in numbers."""
    counts: dict[str, int] = {}
    keeping = instance_norms(subject.model)
    for name, module, _ in modules(subject.model):
        kind = next((k for t, k in _KINDS.items() if isinstance(module, t)), None)
        if kind is not None and name not in keeping:
            counts[kind] = counts.get(kind, 0) + 1
    if keeping:
        counts["instance norm with running statistics"] = len(keeping)
    known = {site.module for site in subject.sites.values()}
    foreign = sorted(
        {
            type(m).__name__
            for m in subject.model.modules()
            if _looks_like_one(m) and m not in known and not isinstance(m, (_NormBase, *_KINDS))
        }
    )
    lines = [f"{n} {kind}{'s' * (n != 1) if 'with' not in kind else ''}: "
             + ("see above" if "with" in kind else "nothing to check") for kind, n in counts.items()]  # fmt: skip
    if foreign:
        lines.append(f"not looked at, though by name a norm: {', '.join(foreign[:4])}")
    return lines


_KINDS: dict[type[nn.Module], str] = {
    nn.LayerNorm: "layer norm", nn.RMSNorm: "RMS norm", nn.GroupNorm: "group norm",
    nn.modules.instancenorm._InstanceNorm: "instance norm",
}  # fmt: skip


def _looks_like_one(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "norm" in name and not any("norm" in type(child).__name__.lower() for child in module.children())
