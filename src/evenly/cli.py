"""The command line: one function per command.

torch takes seconds to import, and ``--help`` must answer at once: a command imports its tool in
its own body, never at the top of this file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

import evenly
from evenly.oneline import OneLineErrors, examples, say, wrong_use


@click.group(
    cls=OneLineErrors,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "evenly lab                  run the experiments, write the report",
        "evenly explain              one epoch by hand: 30 samples, batches of 5",
        "evenly xray FILE            what is wrong with a checkpoint's batch norms",
        "evenly diagnose M:MODEL --data M:BATCHES   why eval() is worse than train()",
        "evenly demo                 a network spoiled in five ways, to try these on",
        "evenly fold M:MODEL --inputs 1,3,224,224 --out FILE.onnx   what is deployed",
        "evenly info                 what is built and what runs it",
    ),
)
@click.option("--version", "ask_version", is_flag=True, help="Print evenly's version and leave.")
@click.pass_context
def main(context: click.Context, ask_version: bool) -> None:
    """Batch normalization and its family: fast layers, honest statistics, tools that show both."""
    if ask_version:
        click.echo(f"evenly {evenly.__version__}")
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command(epilog=examples("evenly explain | less", "evenly explain --html epoch.html", "evenly explain --lang zh"))
@click.option("--html", type=click.Path(dir_okay=False), help="Write a page instead.")
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="English or Chinese.")
def explain(html: str | None, lang: Literal["en", "zh"]) -> None:
    """Show one epoch by hand: 30 samples, batches of 5.

    A three-layer network: every number of its batch norms forward and backward, one prediction,
    and exercises with answers.
    """
    from rich.console import Console

    from evenly.lab import explain_page

    if html is None:
        return explain_page.show(Console(highlight=False), lang)
    page = explain_page.html(lang)
    with wrong_use():
        Path(html).write_text(page, encoding="utf-8")
    return click.echo(f"wrote {html}")


def _experiments(context: click.Context, parameter: click.Parameter, word: str) -> list[str]:
    """The experiments that the shell offers for a half-typed word, but for those that are typed already."""
    from evenly.lab.questions import starting_with

    return [name for name in starting_with(word) if name not in (context.params.get("experiments") or ())]


@main.command(epilog=examples("evenly info", "evenly info --json"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def info(as_json: bool) -> None:
    """Say what is installed, built and used."""
    import json

    from evenly.versions import show_versions, versions

    if as_json:
        click.echo(json.dumps(versions(), indent=2))
    else:
        show_versions()


@main.command(
    epilog=examples(
        "evenly lab                              the lesson, statement by statement",
        "evenly lab --list                       what there is",
        "evenly lab learning_rate depth --seeds 3",
        "evenly lab --all --full --jobs 8        everything, at length",
        "evenly lab --data mine.npz --model mynets:small",
    )
)
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT ...]", shell_complete=_experiments)
@click.option("--list", "ask_list", is_flag=True, help="List the experiments and leave.")
@click.option("--all", "everything", is_flag=True, help="Run all experiments.")
@click.option("--quick/--full", "quick", default=True, help="Few seeds and steps (the default), or many.")
@click.option("--data", default="digits", metavar="DATA", help="digits, mnist5k or FILE.npz with x and y.")
@click.option("--model", metavar="MODULE:FACTORY", help="Your own network, with its norms and without.")
@click.option("--seeds", type=int, metavar="N", help="Runs of each setting.")
@click.option("--jobs", type=int, metavar="N", help="Processes at a time; default: one per core.")
@click.option("--engine", type=click.Choice(["ray", "dask"]), help="Run on a cluster.")
@click.option("--out", default="lab-out", metavar="DIR", help="Where cells and report go.", show_default=True)
@click.option("--open", "show", is_flag=True, help="Open the report in the browser.")
def lab(
    experiments: tuple[str, ...], ask_list: bool, quick: bool, show: bool, engine: str | None, **asked: Any
) -> None:
    """Measure what normalization does, on real data.

    One question per experiment; verdicts by rule, from intervals over seeds. Finished cells are
    kept: an interrupted run goes on where it stopped.
    """
    from rich.console import Console

    with wrong_use():
        from evenly.lab import command

        if ask_list:
            return command.show_list(Console(highlight=False))
        work = command.checked(experiments, full=not quick, engine=engine or "local", **asked)
    from evenly.lab.sources import ChangedError

    try:
        return command.carry_out(work, Console(highlight=False), show=show)
    except ChangedError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


@main.command(
    epilog=examples(
        "evenly bench --quick",
        "evenly bench --shapes resnet50 --json resnet50.json --picture resnet50.svg",
        "evenly bench --shapes cifar --peers torch,compile,keras --layout last",
    )
)
@click.option("--shapes", default="resnet50", show_default=True, help="A list of shapes, or several: a,b.")
@click.option("--peers", default="torch", show_default=True, help="Who to measure beside evenly: a,b.")
@click.option("--batch", type=click.IntRange(1), help="Samples, in place of the list's own number.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]), default="float32")
@click.option("--layout", type=click.Choice(["first", "last"]), default="first", help="Where channels lie in memory.")
@click.option("--residual", is_flag=True, help="Add a residual before the activation.")
@click.option("--cold", "only_cold", is_flag=True, help="Leave out the warm measurement.")
@click.option("--rounds", type=click.IntRange(1), help="How often everyone takes a turn.")
@click.option("--quick", is_flag=True, help="Small batches and few rounds: an order of magnitude within a minute.")
@click.option("--json", "json_file", type=click.Path(), help="Write the results.")
@click.option("--picture", type=click.Path(), help="Draw them: FILE.svg or FILE.png.")
def bench(
    shapes: str, peers: str, batch: int | None, dtype: str, layout: Literal["first", "last"], residual: bool,
    only_cold: bool, rounds: int | None, quick: bool, json_file: str | None, picture: str | None,
) -> None:  # fmt: skip
    """Time norms beside their peers, in copies of the tensor.

    Every result is compared with float64 first; a wrong one gets no time.
    """
    from evenly.bench import main as bench_main

    with wrong_use():
        plan = bench_main.plan(
            shapes=shapes.split(","), peers=peers.split(","), batch=batch, dtype=dtype, layout=layout,
            residual=residual, warm=not only_cold, rounds=rounds, quick=quick, json_file=json_file, picture=picture,
        )  # fmt: skip
    bench_main.carry_out(plan)


@main.command(
    epilog=examples(
        "evenly xray model.safetensors",
        "evenly xray lightning.ckpt --html card.html",
        "evenly xray last.pt --strict          in CI: status 1 after a warning, too",
    )
)
@click.argument("sources", nargs=-1, required=True, metavar="FILE ...")
@click.option("--inside", metavar="SET", help="Look at this set of the file alone.")
@click.option("--html", type=click.Path(), help="Write a page.")
@click.option("--json", "json_file", type=click.Path(), help="Write the findings; - is standard output.")
@click.option("--strict", is_flag=True, help="Exit status 1 after a warning, and where no norm was looked at.")
def xray(sources: tuple[str, ...], inside: str | None, html: str | None, json_file: str | None, strict: bool) -> int:
    """Examine the batch norms of a checkpoint.

    No code of yours is run, and no data is needed. Reads safetensors and files of torch.save:
    state_dict, Lightning, timm, whole models. Tensors only: nothing in the file is executed. Several
    files, folders, or addresses of safetensors files give one table. Exit status 1 after an error.
    """
    from evenly.tools import command, files
    from evenly.tools.xray import xray as look

    if command.are_many(sources):
        from evenly.tools.survey import survey

        with wrong_use():
            files.check_outputs(command.outputs(html, json_file), command.on_disk(sources))
            found = survey(sources)
            command.write(found, html, json_file)
        if json_file != "-":
            say(found.table())
        return found.exit_status(strict=strict)
    (file,) = sources
    with wrong_use():
        files.check_outputs(command.outputs(html, json_file), [file])
        diagnosis = look(file, inside=inside)
    if json_file != "-":
        say(diagnosis.table())
    with wrong_use():
        command.write(diagnosis, html, json_file)
    return diagnosis.exit_status(strict=strict)


@main.command(
    epilog=examples(
        "evenly diagnose train:model --data train:loader",
        "evenly diagnose train:build --data train:data --weights a.pt --fix b.pt",
        "evenly diagnose train:build --data train:data --weights a.pt --html a.html",
    )
)
@click.argument("model", metavar="MODULE:MODEL")
@click.option("--data", required=True, metavar="MODULE:BATCHES", help="Batches, or a function that returns them.")
@click.option("--weights", type=click.Path(), help="Load this file first; tensors only.")
@click.option("--inside", metavar="SET", help="Of several sets in the file that fit, load this one.")
@click.option("--forward", metavar="MODULE:FUNCTION", help="forward(model, batch), where the usual calls do not fit.")
@click.option(
    "--loss", metavar="MODULE:LOSS", help="loss(output, batch), less is better; default: what the labels say."
)
@click.option(
    "--limit", type=click.IntRange(1), help="Use at most so many batches; default: until an interval decides."
)
@click.option("--fix", type=click.Path(), metavar="OUT", help="Write the file mended, if it proves better.")
@click.option("--force", is_flag=True, help="Let --fix write also where the file does not prove better.")
@click.option("--html", type=click.Path(), help="Write a page.")
@click.option("--json", "json_file", type=click.Path(), help="Write findings and trials; - is standard output.")
@click.option("--strict", is_flag=True, help="Exit status 1 after a warning, and where no norm was looked at.")
def diagnose(
    model: str, data: str, weights: str | None, inside: str | None, forward: str | None, loss: str | None,
    limit: int | None, fix: str | None, force: bool, html: str | None, json_file: str | None, strict: bool,
) -> int:  # fmt: skip
    """Say why eval() is worse than train(), and mend it.

    Remedies are tried on copies and ranked by what they restore; --fix writes the best.
    MODULE:MODEL is a model, or a function or class that makes one. Exit status 1 after an error.
    """
    import shlex

    from evenly.tools import checkpoint, command, files, fit
    from evenly.tools.diagnose import diagnose as examine

    with wrong_use():
        outputs = {"--fix": fix, **command.outputs(html, json_file)}
        files.check_outputs(outputs, [weights])
        subject, batches = command.model_at(model), command.batches_at(data)
        judge, call = (None if place is None else command.named(place) for place in (loss, forward))
        loaded = None if weights is None else fit.load(subject, checkpoint.read(weights), inside)
        files.check_outputs(outputs, command.code())
    with wrong_use():
        diagnosis = examine(
            subject, batches, forward=call, loss=judge, limit=limit, say=lambda line: say(line, err=True)
        )
    diagnosis.source, diagnosis.command = weights or model, f"evenly {shlex.join(sys.argv[1:])}"
    if loaded is not None:
        diagnosis.checkpoint, diagnosis.keys = loaded.file, loaded.keys
        diagnosis.examined += [loaded.said] if loaded.said else []
    if json_file != "-":
        say(diagnosis.table())
    with wrong_use():
        command.write(diagnosis, html, json_file)
        if fix is not None:
            say("\n" + command.mended(diagnosis, fix, force=force), err=json_file == "-")
    return diagnosis.exit_status(strict=strict)


@main.command(epilog=examples("evenly demo", "evenly demo elsewhere"))
@click.argument("folder", type=click.Path(), default="evenly-demo")
def demo(folder: str) -> None:
    """Write spoiled networks, to try xray and diagnose on.

    FOLDER gets spoiled.py (the network and its data), good.pt and five spoiled checkpoints.
    """
    from pathlib import Path

    from evenly.tools import demo as spoil

    with wrong_use():
        lines = spoil.write(Path(folder))
    say("try:\n" + "\n".join(f"  {line}" for line in lines))


@main.command(
    epilog=examples(
        "evenly fold nets:build --weights a.pt --inputs 1,3,224,224 --out a.onnx",
        "evenly fold nets:build --weights a.pt --inputs 1,3,8,8 --out a.pt2 --prune",
        "evenly fold --check theirs.onnx a.pt nets:build    is it what I trained?",
    )
)
@click.argument("arguments", nargs=-1, metavar="MODULE:MODEL")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Load this file first; tensors only.")
@click.option("--inputs", multiple=True, metavar="SHAPE", help="The input's sizes, 1,3,224,224; once for each input.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write FILE.pt2, FILE.onnx or FILE.safetensors.")
@click.option("--prune", is_flag=True, help="Remove channels that are constant for every input.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the certificate.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write the certificate as a page.")
@click.option("--force", is_flag=True, help="Write over --out.")
@click.option("--check", "checks", is_flag=True, help="Compare: FOLDED ORIGINAL [MODULE:MODEL].")
def fold(
    arguments: tuple[str, ...], weights: str | None, inputs: tuple[str, ...], out: str | None, prune: bool,
    json_file: str | None, html: str | None, force: bool, checks: bool,
) -> int:  # fmt: skip
    """Fold norms into their neighbours, for deployment.

    Each fold is proved against float64, what is written is run again and compared. With --check,
    exit status 1 if the two files are not the same model.
    """
    with wrong_use():
        from evenly.tools.fold import command

        if checks:
            if len(arguments) not in (2, 3):
                raise ValueError("--check takes the folded file and the original, then MODULE:MODEL if needed.")
            line, good = command.check(arguments[0], arguments[1], arguments[2] if len(arguments) > 2 else None, inputs)
            click.echo(line)
            return int(not good)
        if len(arguments) != 1 or out is None:
            raise ValueError("fold takes MODULE:MODEL and --out FILE.pt2, FILE.onnx or FILE.safetensors.")
        command.check_outputs(weights, out, json_file, html)
        subject, example = command.prepare(arguments[0], weights, inputs, out, force)
        folded, lines = command.carry_out(subject, example, out, prune)
    command.write_certificate(folded, json_file, html)
    click.echo("\n".join(lines))
    return 0


if __name__ == "__main__":
    main(prog_name="evenly")
