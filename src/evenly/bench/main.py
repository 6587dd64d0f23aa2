"""``evenly bench`` from its options to its files: what was asked for is checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from evenly.bench import picture as pictures
from evenly.bench import results, run, table
from evenly.bench.shapes import LISTS, Case, Layout, cases
from evenly.bench.timing import Pace
from evenly.tools import files

_QUICK_BATCH = 8


@dataclass(frozen=True)
class Plan:
    """What will be measured, checked."""

    cases: list[Case]
    peers: list[str]
    pace: Pace
    warm: bool
    settings: dict[str, Any]
    json_file: Path | None
    picture: Path | None


def plan(
    *,
    shapes: Sequence[str],
    peers: Sequence[str],
    batch: int | None = None,
    dtype: str = "float32",
    layout: Layout = "first",
    residual: bool = False,
    warm: bool = True,
    rounds: int | None = None,
    quick: bool = False,
    json_file: str | None = None,
    picture: str | None = None,
) -> Plan:
    """Check what was asked for.

    Raises:
        ValueError: a list or peer is unknown, a list cannot have this batch, or a file cannot be written.
    """
    found: list[Case] = []
    for name in shapes:
        takes_batch = name in LISTS and LISTS[name][1] is not None
        of_list = (
            batch if batch is not None else min(_QUICK_BATCH, LISTS[name][1] or 0) if quick and takes_batch else None
        )
        found += cases(name, batch=of_list, residual=residual, dtype=dtype, layout=layout)
    if not found:
        raise ValueError(f"{', '.join(shapes)} has no shape with channels {layout}; use --layout first.")
    pace = Pace.quick() if quick else Pace()
    pace = Pace(rounds, pace.seconds) if rounds else pace
    files.check_outputs({"--json": json_file, "--picture": picture})
    written = [None if f is None else Path(f) for f in (json_file, picture)]
    if written[1] is not None:
        pictures.check(written[1])
    settings = {
        "shapes": ", ".join(shapes), "peers": list(peers), "batch": batch, "dtype": dtype, "layout": layout,
        "residual": residual, "rounds": pace.rounds, "seconds": pace.seconds, "quick": quick,
    }  # fmt: skip
    return Plan(found, run.check_peers(peers), pace, warm and not quick, settings, written[0], written[1])


def carry_out(plan: Plan, console: Console | None = None) -> results.Results:
    """Measure, print and write; returns the results."""
    console = console or Console(highlight=False)
    rows = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(plan.cases))
        for case in plan.cases:
            progress.update(task, description=case.label)
            progress.refresh()
            rows.append(run.run_case(case, plan.peers, plan.pace, warm=plan.warm))
            progress.advance(task)
    found = results.collect(rows, **plan.settings)
    table.show(found, console)
    if plan.json_file is not None:
        results.write(found, plan.json_file)
        console.print(f"results: {plan.json_file}")
    if plan.picture is not None:
        pictures.draw(found, plan.picture)
        console.print(f"picture: {plan.picture}")
    return found
