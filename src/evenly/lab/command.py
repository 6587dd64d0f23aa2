"""What `evenly lab` does between the words typed and the report."""

from __future__ import annotations

import importlib.util
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from evenly.lab.plan import Plan

EXTRA = ("altair", "vl_convert", "jinja2", "joblib")
ENGINES = {"ray": "ray", "dask": "distributed"}


def require_extra() -> None:
    """Say what to install where the packages of the ``lab`` extra are absent.

    Raises:
        ImportError: one of them is.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the lab needs {', '.join(missing)}; pip install 'evenly[lab]'")


def checked(names: Sequence[str], **options: Any) -> Plan:
    """The plan of what was typed.

    Raises:
        ValueError: it cannot be run as typed, or a package it needs is not installed.
    """
    require_extra()
    from evenly.lab.plan import plan

    engine = options["engine"]
    if engine in ENGINES and importlib.util.find_spec(ENGINES[engine]) is None:
        package = {"ray": "ray", "dask": "dask[distributed]"}[engine]
        raise ValueError(f"--engine {engine} needs {package}; pip install '{package}'")
    return plan(names, **options)


def show_list(console: Console) -> None:
    """Print the experiments, one question each; this needs none of the extra's packages."""
    from evenly.lab.questions import DEFAULT, QUESTIONS

    table = Table(box=None, pad_edge=False)
    for heading in ("experiment", "question", "default"):
        table.add_column(heading)
    for name, question in QUESTIONS.items():
        table.add_row(name, question, "yes" if name in DEFAULT else "")
    console.print(table)


def carry_out(work: Plan, console: Console, *, show: bool) -> None:
    """Run the plan; open the report if asked."""
    from evenly.lab.run import execute

    execute(work, console)
    if show:
        webbrowser.open((work.out / "report.html").resolve().as_uri())
