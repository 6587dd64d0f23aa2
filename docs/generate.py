"""Write the generated parts of README.md and docs/ from code and committed results, or check them.

A page holds a generated part between two marks, ``<!-- generated: NAME -->`` and ``<!-- end NAME -->``;
`PARTS` names the function that writes it. Run as ``python docs/generate.py [--check]``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)


def explain() -> str:
    """The worked example, as `evenly explain` prints it."""
    from evenly.lab import explain_page

    return explain_page.markdown()


def explain_zh() -> str:
    """The worked example in Chinese."""
    from evenly.lab import explain_page

    return explain_page.markdown("zh")


def article(lang: Literal["en", "zh"]) -> str:
    """Every statement of the lesson, measured."""
    sys.path.insert(0, str(ROOT))
    from docs import article

    return article.page(lang)


def claims() -> str:
    """One claim for each statement of the lesson, as the lab's committed quick run judged it."""
    from evenly.lab.lesson import STATEMENTS

    known = {(r["experiment"], r["claim"]): r for r in _lab("quick")["claims"]}
    lines = ["| claim | verdict | measured | seeds |", "|---|---|---|---:|"]
    for statement in STATEMENTS:
        if r := known.get((statement.experiment, statement.claim)):
            seeds = "exact" if r.get("exact") else r["seeds"]
            verdict = f"{MARKS[r['outcome']]} {r['outcome']}"
            lines.append(f"| {r['claim']} | {verdict} | {r['about']}: {r['measured']} | {seeds} |")
    return "\n".join(lines)


MARKS = {"holds": "✓", "does not hold": "✗", "cannot tell": "?"}


def _lab(form: str) -> dict[str, Any]:
    """The committed run of the lab's quick or full form: its claims, and how and where it was run."""
    run: dict[str, Any] = json.loads((ROOT / "docs" / "results" / f"lab_{form}.json").read_text("utf-8"))
    return run


def lab_runs() -> str:
    """How long the two forms of the whole lab take, and what they find."""
    lines = ["| command | cells | time | " + " | ".join(MARKS) + " |", "|---|---:|---:|" + "---:|" * len(MARKS)]
    for form in ("quick", "full"):
        run = _lab(form)
        counts = [str(sum(r["outcome"] == outcome for r in run["claims"])) for outcome in MARKS]
        minutes = f"{run['minutes']} min" if run["minutes"] else "not taken"
        lines.append(f"| `{run['command']}` | {run['cells']:,} | {minutes} | {' | '.join(counts)} |")
    run = _lab("full")
    return "\n".join(lines) + f"\n\nMeasured with `--jobs {run['jobs']}` on {run['machine']}, {run['note']}."


def _both_forms() -> str:
    """Every claim, as the full run and as the quick run judged it."""
    forms = [{(r["experiment"], r["claim"]): r for r in _lab(form)["claims"]} for form in ("full", "quick")]
    every = list(dict.fromkeys(key for form in reversed(forms) for key in form))
    lines = ["| claim | number | full | quick |", "|---|---|---|---|"]
    for key in every:
        about = next(form[key]["about"] for form in forms if key in form)
        judged = (_judged(form[key]) if key in form else "–" for form in forms)
        lines.append(f"| {key[1]} | {about} | {' | '.join(judged)} |")
    return "\n".join(lines)


def _judged(record: dict[str, Any]) -> str:
    rests = f"exact, {record['seeds']} checks" if record.get("exact") else f"n = {record['seeds']}"
    return f"{MARKS[record['outcome']]} {record['outcome']}: {record['measured']}, {rests}"


def story() -> str:
    """The story of batch normalization, its numbers from the committed runs of the lab."""
    import jinja2

    runs = {form: _lab(form) for form in ("quick", "full")}

    def seen(experiment: str, index: int, form: str = "full") -> str:
        # The quick run always has today's claims; where the full one has not been repeated since, it stands in.
        asked = [r for r in runs["quick"]["claims"] if r["experiment"] == experiment][index]
        again = [r for r in runs[form]["claims"] if (r["experiment"], r["claim"]) == (experiment, asked["claim"])]
        r = (again or [asked])[0]
        rests = f"{r['seeds']} exact checks" if r.get("exact") else f"{r['seeds']} seeds"
        measured = f"{r['measured']}; {rests}" + ("" if again and form == "full" else ", quick form")
        return f"> {r['claim']}: **{r['outcome']}** ({r['about']}: {measured})."

    def picture(name: str, title: str) -> str:
        file = f"assets/lab/{name}.svg"
        if not (ROOT / "docs" / file).exists():
            raise SystemExit(f"the story shows docs/{file}, which is not there; copy it from a full run's charts")
        return f"![{title}]({file})"

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string((ROOT / "docs" / "templates" / "story.md.j2").read_text("utf-8"))
    return template.render(seen=seen, picture=picture, table=_both_forms(), **runs)


def bench() -> str:
    """One row for each committed run of the bench: its weighted sum, in copies of the tensor."""
    every = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    runs = {path: json.loads(path.read_text("utf-8")) for path in every}
    runs = {path: run for path, run in runs.items() if run.get("schema") == 1 and "cold" in run.get("sums", {})}
    every_peer = (name for run in runs.values() for name in run["sums"]["cold"])
    peers = [name for name in dict.fromkeys(every_peer) if name not in ("evenly", "kernels")]
    lines = [
        "| norms of | layout, type | evenly | " + " | ".join(peers) + " |",
        "|---|---|---:|" + "---:|" * len(peers),
    ]
    for path, run in runs.items():
        sums, settings = run["sums"]["cold"], run["settings"]
        about = f"channels {settings['layout']}, {settings['dtype']}" + _besides(path, settings)
        ours = f"**{sums['evenly']['both']['copies']:.2f}**" if "evenly" in sums else "refused"
        theirs = [_peer(sums[name]["both"]) if name in sums else "–" for name in peers]
        lines.append(f"| {settings['shapes']} | {about} | {ours} | " + " | ".join(theirs) + " |")
    return "\n".join(lines)


def _besides(path: Path, settings: dict[str, Any]) -> str:
    """What else a run was about: a residual, another instruction set than the machine's best."""
    return (", residual" if settings["residual"] else "") + (", AVX2" if path.stem.endswith("-avx2") else "")


def _peer(both: dict[str, float]) -> str:
    slower = f" ({both['slower']:.1f}× the time)" if "slower" in both else ""
    return f"{both['copies']:.2f}{slower}"


def bench_files() -> str:
    """Every committed run of the bench in full: what was asked, where, and a table."""
    from evenly.bench import results

    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        run = json.loads(path.read_text("utf-8"))
        if run.get("schema") != results.SCHEMA or not run.get("rows") or "cold" not in run.get("sums", {}):
            continue
        settings, machine = run["settings"], run["machine"]
        about = f"{settings['dtype']}, channels {settings['layout']}" + _besides(path, settings)
        parts.append(
            f"### {settings['shapes']}: {about}\n\n"
            f"Forward and backward together, cold, in copies; {settings['rounds']} rounds.\n"
            f"Commit {run['commit']}, {run['when'][:10]}; {machine['processor']}, {machine['threads']} threads, "
            f"last-level cache {machine['last-level cache']}; torch {machine['torch']}, kernels {machine['kernels']}; "
            f"`benchmarks/results/{path.name}`.\n\n{results.markdown(run)}"
        )
    return "\n\n".join(parts) or NOT_MEASURED


# What the kernels set out to reach on each list: copies at most, times as fast as torch eager at least.
GOALS: dict[str, tuple[float | None, float]] = {
    "resnet50": (3.0, 6),
    "resnet50-last": (3.6, 4),
    "resnet50-residual": (4.5, 3),
    "resnet50-bfloat16": (3.3, 3),
    "resnet50-avx2": (None, 3),
    "mobilenetv2": (None, 3),
    "unet3d": (None, 3),
    "cifar": (None, 3),
    "group": (None, 3),
    "rows": (None, 1),
    "small": (None, 1),
    "huge": (None, 3),
}


def bench_goals() -> str:
    """Each list against its goals, and every shape on which torch is faster."""
    lines = [
        "| run | copies | goal | kernels alone | times as fast as torch | goal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    slower = []
    for name, (copies, faster) in GOALS.items():
        run = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
        sums = run["sums"]["cold"]
        ours, ratio = sums["evenly"]["both"]["copies"], sums["torch"]["both"]["slower"]
        goal = "–" if copies is None else f"≤ {copies:.1f}"
        alone = f"{sums['kernels']['both']['copies']:.2f}" if "kernels" in sums else "–"
        lines.append(
            f"| {name} | {_marked(f'{ours:.2f}', copies is None or ours <= copies)} | {goal} "
            f"| {alone} | {_marked(f'{ratio:.1f}×', ratio >= faster)} | ≥ {faster}× |"
        )
        for row in run["rows"]:
            both = [row["peers"][who]["cold"]["copies"]["both"]["median"] for who in ("evenly", "torch")]
            if both[0] > both[1]:
                slower.append(f"{name} {'×'.join(map(str, row['case']['shape']))} ({both[0] / both[1]:.2f}×)")
    return "\n".join(lines) + (
        f"\n\nTorch is faster, our time in torch's beside it, on {', '.join(slower)}."
        if slower
        else "\n\nNo shape of these lists takes longer than in torch."
    )


def _marked(figure: str, reached: bool) -> str:
    return figure if reached else f"**{figure}**"


def memory() -> str:
    """What benchmarks/memory.cpp printed."""
    return "```text\n" + (ROOT / "benchmarks" / "results" / "memory.txt").read_text("utf-8") + "```"


def loops() -> str:
    """What benchmarks/loops.py printed, and what it comes to for one list in two types."""
    text = (ROOT / "benchmarks" / "results" / "loops.txt").read_text("utf-8")
    rates = {line[:34].strip(): [float(rate) for rate in line[34:].split()] for line in text.splitlines()[1:]}
    cold = (ROOT / "benchmarks" / "results" / "call.txt").read_text("utf-8").split("cold")[1].splitlines()
    empty = sum(int(us) for line in cold if line.startswith("a function") for us in line.split()[-2:]) * 1e-6
    lines = [
        "| list | copies | kernels alone | loops, from cache | traffic, at a copy's speed | empty autograd calls |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("resnet50", "resnet50-bfloat16"):
        run = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
        copy = computing = calls = 0.0
        for row in run["rows"]:
            samples, channels, side, _ = row["case"]["shape"]
            known = rates[f"{row['case']['dtype']}, planes of {min(side, 56)}×{min(side, 56)}"]
            each = sum(1e-9 / rate for rate in known) / int(run["machine"]["threads"])
            copy += row["case"]["times"] * row["copy_cold"]["seconds"]["both"]["median"]
            computing += row["case"]["times"] * each * samples * channels * side**2
            calls += row["case"]["times"] * empty
        sums = run["sums"]["cold"]
        figures = [
            sums["evenly"]["both"]["copies"],
            sums["kernels"]["both"]["copies"],
            computing / copy,
            5 / 2,  # what must be read and written at least, in tensors, and what a copy does
            calls / copy,
        ]
        lines.append(f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    return f"```text\n{text}```\n\n" + "\n".join(lines)


def call() -> str:
    """What benchmarks/call.py printed."""
    return "```text\n" + (ROOT / "benchmarks" / "results" / "call.txt").read_text("utf-8") + "```"


NOT_MEASURED = "No measurement of an idle machine is committed yet; the commands above make one."


def training_step() -> str:
    """The committed measurement of whole training steps."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import training_step as study

    file = ROOT / "benchmarks" / "results" / "training_step.json"
    if not file.exists():
        return NOT_MEASURED
    run = json.loads(file.read_text("utf-8"))
    machine = run["machine"]
    about = f"Commit {run['commit']}, {run['when'][:10]}; {machine['processor']}, {machine['threads']} threads."
    return f"{about}\n\n{study.markdown(run)}"


def sync() -> str:
    """One row for each committed measurement of what shared statistics cost."""
    run = json.loads((ROOT / "benchmarks" / "results" / "sync.json").read_text("utf-8"))
    lines = [
        f"Milliseconds of forward and backward, {run['samples']} samples and one thread for each process, "
        f"on {run['machine']['cores']} cores; medians of paired steps, and the quartiles of what sharing adds.",
        "",
        "| processes | step | plain | shared | added | quartiles |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in run["rows"]:
        crowded = " (more than cores)" if row["over cores"] else ""
        added = row["sync"] - row["plain"]
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        about = f"| {row['processes']}{crowded} | {row['case']}"
        lines.append(f"{about} | {row['plain']:.2f} | {row['sync']:.2f} | {added:.2f} | {spread} |")
    return "\n".join(lines)


def keras_fit() -> str:
    """What a batch norm adds to a step of Keras's fit, shape by shape."""
    file = ROOT / "benchmarks" / "results" / "keras_fit.json"
    if not file.exists():
        return NOT_MEASURED
    run = json.loads(file.read_text("utf-8"))
    machine, rows = run["machine"], run["rows"]
    rounds = " to ".join(str(n) for n in sorted({row["rounds"] for row in rows}))
    lines = [
        f"{machine['processor']}, {machine['threads']} threads; Keras {machine['keras']} on torch {machine['torch']}; "
        f"a network of {run['depth']} norms, each with a ReLU; "
        f"medians and quartiles of {rounds} paired rounds.",
        "",
        "| input | Keras, µs a norm | an empty layer, µs | evenly, µs | times faster | with the ReLU fused |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        took, faster = row["microseconds per norm"], row["times faster"]
        times = " | ".join(
            f"**{middle:.1f}** ({low:.1f} to {high:.1f})"
            for low, middle, high in (faster["evenly"], faster["evenly, fused"])
        )
        size = "×".join(map(str, row["size"]))
        shown = " | ".join(f"{took[kind]:.0f}" for kind in ("keras", "nothing", "evenly"))
        lines.append(f"| {row['shape']}: {size} | {shown} | {times} |")
    for kind, about in (("evenly", "Beside a ReLU"), ("evenly, fused", "With the ReLU fused")):
        lines += ["", f"{about}, the goal of 3 times faster per norm is {_reached(rows, kind)}."]
    return "\n".join(lines)


def _reached(rows: list[dict[str, Any]], kind: str, goal: float = 3.0) -> str:
    missed = [row["shape"] for row in rows if row["times faster"][kind][1] < goal]
    if not missed:
        return "reached for every shape"
    return f"reached for {len(rows) - len(missed)} of {len(rows)} shapes; not for " + "; ".join(missed)


PAGES: dict[str, Callable[[], str]] = {
    "docs/article.md": partial(article, "en"),
    "docs/article.zh-CN.md": partial(article, "zh"),
    "docs/explain.md": explain,
    "docs/explain.zh-CN.md": explain_zh,
    "docs/story.md": story,
}


def situations() -> str:
    """What diagnose says of each situation, and what the file it writes scores."""
    runs = json.loads((ROOT / "docs" / "results" / "situations.json").read_text("utf-8"))
    lines = ["| what happened | what is said | eval() | with the mended file | by |", "|---|---|---:|---:|---|"]
    for run in runs.values():
        said = ", ".join(f"`{rule}` ({level})" for rule, level in run["said"]) or "not seen, and so said"
        score, after = (f"{v:.1f}" if v is not None else "" for v in (run["before"], run["after"]))
        by = run["trial"] or ("no file: " + run["refused"].rstrip(".") if run["refused"] else "no file")
        lines.append(f"| {run['cause']} | {said} | {score} | {after} | {by} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "claims": claims,
    "bench": bench,
    "bench-files": bench_files,
    "bench-goals": bench_goals,
    "memory": memory,
    "loops": loops,
    "call": call,
    "training-step": training_step,
    "sync": sync,
    "keras-fit": keras_fit,
    "lab-runs": lab_runs,
    "situations": situations,
}


def pages() -> dict[Path, str]:
    """Every page with something generated in it, and what it should hold."""
    wanted = {ROOT / path: write() for path, write in PAGES.items()}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path.exists() and path not in wanted and MARKED.search(text := path.read_text(encoding="utf-8")):
            wanted[path] = MARKED.sub(_part, text)
    return wanted


def _part(match: re.Match[str]) -> str:
    name = match["name"]
    if name not in PARTS:
        raise SystemExit(f"no part is called {name!r}; known are {', '.join(PARTS) or 'none'}.")
    return f"<!-- generated: {name} -->\n{PARTS[name]().strip()}\n<!-- end {name} -->"


def main(arguments: list[str]) -> int:
    """Write what differs, or with ``--check`` only name it; 1 where a check found a difference."""
    check = "--check" in arguments
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print("run `make docs` and commit what it writes")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
