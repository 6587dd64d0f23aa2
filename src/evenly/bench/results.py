"""What a run leaves: one JSON file, and tables made from it.

Everything printed or committed is made from the dictionary that `collect` returns, so that a table
can be made again from its file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evenly.bench import timing
from evenly.bench.run import Measured, Row
from evenly.bench.shapes import Case
from evenly.tools import files

SCHEMA = 1
Results = dict[str, Any]


def collect(rows: Sequence[Row], **settings: Any) -> Results:
    """Everything about a run, ready for JSON.

    Args:
        rows: the cases, measured.
        settings: what was asked for.

    Returns:
        ``schema``, ``when``, ``commit``, ``machine``, ``settings``, ``rows``, ``sums`` (see `sums`).
    """
    plain_rows = [_plain(row) for row in rows]
    return {
        "schema": SCHEMA,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "settings": settings,
        "rows": plain_rows,
        "sums": sums(plain_rows),
    }


def machine() -> dict[str, Any]:
    """Versions, processor, threads and caches."""
    from evenly.versions import versions

    found: dict[str, Any] = dict(versions())
    found["OpenMP"] = re.sub(r"[^ ,]*/site-packages/", "", found["OpenMP"])  # where this machine keeps them is its own
    found["last-level cache"] = f"{timing.last_level_cache() >> 20} MiB"
    found["cores"] = str(os.cpu_count())
    return found


def write(results: Results, path: str | Path) -> None:
    """Write results as JSON."""
    files.write(path, json.dumps(results, indent=1) + "\n")


def read(path: str | Path) -> Results:
    """Read a results file.

    Raises:
        ValueError: it is not one, or of another schema.
    """
    results = json.loads(Path(path).read_text())
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no results file of schema {SCHEMA}; `evenly bench --json FILE` writes one.")
    return results


def sums(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The weighted sum over a list: how long one pass of the network spends in its norms.

    ``copies`` is the sum of ``times * seconds`` over the same sum of the copies; ``slower`` how many
    times longer than evenly a peer takes, over the cases that both ran. Low and high are the sums of
    the quartiles. A peer that was refused anywhere still has a sum, over the ``cases`` it ran.

    Returns:
        ``{"cold": {peer: {part: {"copies": …, "low": …, "high": …, "slower": …, "cases": n}}}, "warm": …}``.
    """
    return {heat: _sums(rows, heat) for heat in ("cold", "warm") if any(row[f"copy_{heat}"] for row in rows)}


def _sums(rows: Sequence[dict[str, Any]], heat: str) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    found: dict[str, Any] = {}
    for name in names:
        ran = [row for row in rows if name in row["peers"] and row["peers"][name][heat]]
        if not ran:
            continue
        found[name] = {part: _sum(ran, name, heat, part) for part in timing.PARTS}
        both = [row for row in ran if row["peers"].get("evenly", {}).get(heat)]
        for part in timing.PARTS if both else ():
            ours = _total(both, "evenly", heat, part, "median")
            found[name][part]["slower"] = _total(both, name, heat, part, "median") / ours
    return found


def _sum(rows: Sequence[dict[str, Any]], name: str, heat: str, part: str) -> dict[str, float]:
    copies = sum(row["case"]["times"] * row[f"copy_{heat}"]["seconds"]["forward"]["median"] for row in rows)
    of = {key: _total(rows, name, heat, part, key) for key in ("median", "low", "high")}
    return {
        "copies": of["median"] / copies,
        "low": of["low"] / copies,
        "high": of["high"] / copies,
        "cases": len(rows),
    }


def _total(rows: Sequence[dict[str, Any]], name: str, heat: str, part: str, key: str) -> float:
    return float(sum(row["case"]["times"] * row["peers"][name][heat]["seconds"][part][key] for row in rows))


def markdown(results: Results, *, heat: str = "cold", part: str = "both") -> str:
    """A table of the rows and their sum, in copies of the tensor, for a page in ``docs/``.

    Args:
        results: of `collect` or `read`.
        heat: ``"cold"`` or ``"warm"``.
        part: ``"forward"``, ``"backward"`` or ``"both"``.
    """
    names = list(dict.fromkeys(name for row in results["rows"] for name in row["peers"]))
    head = ["shape", "times", *names, "error", "error at mean 1e4"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in results["rows"]:
        cells = [_cell(row["peers"].get(name), heat, part) for name in names]
        ours = row["peers"].get("evenly", {})
        errors = [_error(ours.get("error")), _error(ours.get("error_offset"))]
        lines.append("| " + " | ".join([label(row), str(row["case"]["times"]), *cells, *errors]) + " |")
    of = results["sums"].get(heat, {})
    summed = [f"**{of[name][part]['copies']:.2f}**" if name in of else "" for name in names]
    lines.append("| " + " | ".join(["**weighted sum**", "", *summed, "", ""]) + " |")
    slower = [f"{of[name][part]['slower']:.1f}×" if name in of and "slower" in of[name][part] else "" for name in names]
    lines.append("| " + " | ".join(["time, evenly's = 1", "", *slower, "", ""]) + " |")
    return "\n".join(lines)


def label(row: dict[str, Any]) -> str:
    """The shape of a row, as tables have it; the norm where it is not batch norm."""
    case = Case(**{**row["case"], "shape": tuple(row["case"]["shape"])})
    return case.label if case.norm == "batch" else f"{case.norm} {case.label}"


def _cell(measured: dict[str, Any] | None, heat: str, part: str) -> str:
    if measured is None or measured[heat] is None:
        return "refused" if measured and measured["error"] is not None else "–"
    return f"{measured[heat]['copies'][part]['median']:.1f}"


def _error(error: float | str | None) -> str:
    return "" if error is None else "NaN" if isinstance(error, str) else f"{error:.0e}"


def _plain(row: Row) -> dict[str, Any]:
    return {
        "case": {**asdict(row.case), "shape": list(row.case.shape)},
        "copy_cold": row.copy_cold and asdict(row.copy_cold),
        "copy_warm": row.copy_warm and asdict(row.copy_warm),
        "peers": {name: _plain_measured(found) for name, found in row.peers.items()},
    }


def _plain_measured(found: Measured) -> dict[str, Any]:
    plain = asdict(found)
    for name in ("error", "error_offset"):
        if plain[name] == float("inf"):  # JSON has no infinity
            plain[name] = "inf"
    return plain


def _commit() -> str | None:
    """The commit of the checkout that this package is read from, with ``+`` where it was changed."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", here, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
