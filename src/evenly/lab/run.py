"""Run the cells: in parallel, each kept as it finishes, so that an interruption loses nothing finished."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from evenly.lab import sources, workers
from evenly.lab.cells import read_by
from evenly.lab.data import load
from evenly.lab.experiment import Cell, Results, Values
from evenly.lab.experiments import EXPERIMENTS
from evenly.lab.plan import Plan, estimate, plan
from evenly.lab.report import Report, Section
from evenly.tools.names import line


def run(names: Sequence[str] | str = (), *, console: Console | None = None, **options: Any) -> Report:
    """Run experiments and write their report; in a notebook the returned object shows itself.

    Args:
        names: experiments; none: those of the lesson.
        console: where progress and the table go; None: nothing is printed.
        options: those of `evenly.lab.plan.plan`.

    Example:
        >>> report = run(["inference"], seeds=2, jobs=1, out=getfixture("tmp_path"))  # doctest: +SKIP
        >>> report.verdicts[0].outcome                                                # doctest: +SKIP
        'holds'
    """
    names = [names] if isinstance(names, str) else names
    return execute(plan(names, **options), console or Console(quiet=True))


def execute(work: Plan, console: Console) -> Report:
    """Finish the cells of ``work``, write the report, print the table of claims.

    Raises:
        KeyboardInterrupt: the user stopped it; finished cells are kept.
    """
    for reason in work.skipped:
        _say(console, f"skipped: {reason}")
    try:
        finish(work, console)
    except KeyboardInterrupt:
        kept = len(work.cells) - len(work.unfinished())
        _say(console, f"{kept} of {len(work.cells)} cells are kept in {work.out}; the same command goes on from there")
        raise
    report = gather(work)
    path = report.save(work.out)
    console.print(report.table())
    _say(console, f"report: {path}")
    return report


def _say(console: Console, text: str) -> None:
    """A line of ours that may quote a name: without markup, and with nothing in it that a terminal obeys."""
    console.print(line(text), markup=False, soft_wrap=True)


def gather(work: Plan) -> Report:
    """The report of finished cells."""
    sections = []
    for experiment in work.experiments:
        found = [work.store.read(cell) for cell in work.cells if cell.experiment == experiment.name]
        results = Results([result for result in found if result is not None])
        sections.append(Section.of(experiment, results, rerun=_rerun(work, experiment.name)))
    data = dict.fromkeys(load(cell.setting.data).describe() for cell in work.cells)
    return Report(tuple(sections), tuple(data), work.command)


def _rerun(work: Plan, name: str) -> str:
    options = " ".join(part for part in work.command.split()[2:] if part not in EXPERIMENTS and part != "--all")
    return f"evenly lab {name} {options}".strip()


def run_cell(cell: Cell, main_process: int) -> tuple[Cell, Values, dict[str, str]]:
    """Measure one cell on one thread; also returned is what data and code it was made of."""
    if os.getpid() != main_process:
        workers.leave_interrupts()
    made_of = read_by(cell)
    with _one_thread():
        values = EXPERIMENTS[cell.experiment].measure(cell.setting, cell.seed, load(cell.setting.data))
    return cell, values, {**made_of, **read_by(cell)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small run fastest, and to the same bits everywhere, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finish(work: Plan, console: Console) -> None:
    """Run the unfinished cells, and keep each as it finishes."""
    todo = work.unfinished()
    spoiled = sum(work.store.spoiled(cell) for cell in todo)
    if spoiled:
        _say(console, f"{_count(spoiled, 'cell')} on the disk was damaged or edited, and runs again")
    with _one_thread():
        costs = estimate(todo)
    done = len(work.cells) - len(todo)
    console.print(
        f"{_count(len(work.experiments), 'experiment')}, {_count(len(todo), 'cell')} to run "
        f"on {_count(work.jobs, 'job')}"
        f"{f' ({done} finished before)' if done else ''}: {_duration(sum(costs.values()) / work.jobs)}"
    )
    if not todo:
        return
    # Long cells first: the last minutes then have work for every job.
    ordered = sorted(todo, key=costs.__getitem__, reverse=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=console, transient=True) as progress, _engine(work):
        task = progress.add_task("training", total=sum(costs.values()), count=f"0/{len(todo)}")
        finished = _finished(ordered, work)
        try:
            for count, (cell, values, made_of) in enumerate(finished, start=1):
                sources.check_same(made_of, read_by(cell))
                work.store.write(cell, values)
                progress.update(
                    task, advance=costs[cell], count=f"{count}/{len(todo)}", description=cell.experiment
                )  # fmt: skip
        finally:
            finished.close()


def _finished(cells: list[Cell], work: Plan) -> Generator[tuple[Cell, Values, dict[str, str]], None, None]:
    """Cells as they finish, in whatever order."""
    tasks = [joblib.delayed(run_cell)(cell, os.getpid()) for cell in cells]
    if work.engine != "ray":
        yield from joblib.Parallel(n_jobs=work.jobs, return_as="generator_unordered", batch_size=1)(tasks)
        return
    # Ray's backend hands results back only all together: a few at a time, so that they are kept on the way.
    some = 4 * work.jobs
    for start in range(0, len(tasks), some):
        yield from joblib.Parallel(n_jobs=work.jobs, batch_size=1)(tasks[start : start + some])


@contextmanager
def _engine(work: Plan) -> Iterator[None]:
    """joblib's own backends: processes here, a Ray cluster, or a Dask cluster."""
    if work.engine == "local":
        if work.jobs == 1:
            with joblib.parallel_config(backend="sequential"):
                yield
            return
        with joblib.parallel_config(backend="loky", initializer=workers.begin, initargs=(os.getpid(),)):
            yield
    elif work.engine == "ray":
        from ray.util.joblib import register_ray

        register_ray()
        with joblib.parallel_config(backend="ray"):
            yield
    else:
        from dask.distributed import Client

        # The scheduler named by DASK_SCHEDULER_ADDRESS, or a cluster of this machine's cores.
        here = {} if "DASK_SCHEDULER_ADDRESS" in os.environ else {"n_workers": work.jobs, "threads_per_worker": 1}
        with Client(**here), joblib.parallel_config(backend="dask"):
            yield


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {seconds / 60:.0f} min"
