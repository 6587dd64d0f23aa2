"""The certificate of a fold: a plain dictionary, and what people read of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

import torch
from torch import nn

SCHEMA = 1


def make(
    form: str, folds: list[dict[str, Any]], refused: list[dict[str, str]], result: nn.Module, **more: Any
) -> dict[str, Any]:
    """The certificate: plain lists, strings and numbers alone, so that it outlives evenly."""
    return {
        "schema": SCHEMA, "form": form, "folds": folds, "refused": refused, "torch": torch.__version__,
        "digest": digest(result), **more,
    }  # fmt: skip


def digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's state."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        total.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return total.hexdigest()


def text(certificate: Mapping[str, Any]) -> str:
    """The certificate in lines: every fold with its errors and bound, every refusal with its reason."""
    folds, refused = certificate["folds"], certificate["refused"]
    lines = [f"{len(folds)} folded, {len(refused)} left; the result is a {_FORMS[certificate['form']]}"]
    for fold in folds:
        worst = max(fold["error_example"], fold["error_random"])
        where = f"{fold['from']} -> {', '.join(fold['into'])}"
        lines.append(f"  {where}   {fold['rule']}   error {worst:.1e}, bound {fold['bound']:.1e}")
    lines += [f"  left {item['where']}: {item['reason']}" for item in refused]
    for key, word in (("cloned", "cloned"), ("pruned", "pruned"), ("biases", "bias removed")):
        lines += [f"  {word} {item}" for item in certificate.get(key, [])]
    whole = certificate.get("model")
    if whole:
        errors = f"{whole['error']:.1e} from float64, {whole['unfolded']:.1e} before folding"
        lines.append(f"whole model: {errors}, outputs up to {whole['largest']:.1e}")
    return "\n".join(lines)


_FORMS = {"module": "copy of the model's own class", "graph": "torch.fx.GraphModule"}


def summary(certificate: Mapping[str, Any]) -> str:
    """One line: how many were folded, and the reasons why the rest was not, each with its number."""
    reasons = Counter(_kind(item["reason"]) for item in certificate["refused"])
    why = "".join(f"; {number} left: {reason}" for reason, number in reasons.most_common())
    return f"{len(certificate['folds'])} folded{why}"


def _kind(reason: str) -> str:
    """A reason without the names in it."""
    import re

    return re.sub(r"\s*\([^)]*\)", "", reason)


def section(certificate: Mapping[str, Any]) -> str:
    """The certificate as a section of an HTML page."""
    rows = "".join(
        f"<tr><td>{escape(f['from'])}</td><td>{escape(', '.join(f['into']))}</td><td>{escape(f['rule'])}</td>"
        f"<td>{f['error_example']:.1e}</td><td>{f['error_random']:.1e}</td><td>{f['bound']:.1e}</td></tr>"
        for f in certificate["folds"]
    )
    left = "".join(
        f"<tr><td>{escape(r['where'])}</td><td>{escape(r['reason'])}</td></tr>" for r in certificate["refused"]
    )
    return (
        '<section class="certificate"><h2>What was folded</h2><table><thead><tr><th>norm</th><th>into</th><th>rule</th>'
        "<th>error, example</th><th>error, random</th><th>bound</th></tr></thead><tbody>"
        f"{rows}</tbody></table><h2>What was left</h2><table><thead><tr><th>norm</th><th>reason</th></tr></thead>"
        f"<tbody>{left}</tbody></table><p>torch {escape(certificate['torch'])}, "
        f"weights {certificate['digest'][:16]}</p></section>"
    )
