"""The command line: what it prints, how it refuses, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from evenly.cli import main, wrong_use

COMMANDS = sorted(main.commands)


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_shows_examples(arguments: list[str]) -> None:
    """Every command answers ``--help`` with its purpose and examples that begin with the command itself."""
    result = CliRunner().invoke(main, [*arguments, "--help"], prog_name="evenly")

    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"  {' '.join(['evenly', *arguments])}" in result.output.split("Examples:")[1]
    assert max(map(len, result.output.splitlines())) <= 80


def test_help_lists_every_command_in_full() -> None:
    """No command's summary is cut short in the list."""
    listed = CliRunner().invoke(main, ["--help"]).output.split("Commands:")[1].split("Examples:")[0]

    assert "..." not in listed
    for name in COMMANDS:
        assert f"  {name} " in listed


def test_no_command_is_a_request_for_help() -> None:
    """`evenly` alone prints the help and succeeds."""
    result = CliRunner().invoke(main, [])

    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--nonsense"], *([name, "--nonsense"] for name in COMMANDS), ["explain", "too", "many"]],
    ids=" ".join,
)
def test_wrong_use_is_one_line_and_status_2(arguments: list[str]) -> None:
    """Whatever is typed wrongly is named in one line, with where to read on, and the status is 2."""
    result = CliRunner().invoke(main, arguments, prog_name="evenly")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "--help says more)" in result.stderr


def test_a_refused_value_is_wrong_use() -> None:
    """What a tool refuses in the user's words is a usage error, without a traceback."""
    with pytest.raises(click.UsageError, match=r"5 groups; groups must divide"), wrong_use():
        raise ValueError("32 channels cannot split into 5 groups; groups must divide channels.")


def test_interruption_is_status_130() -> None:
    """Ctrl-C ends a command with the shell's own status for it and one line."""

    @click.command(name="interrupted-for-the-test")
    def stop() -> None:
        raise KeyboardInterrupt

    main.add_command(stop)
    try:
        result = CliRunner().invoke(main, [stop.name or ""])
    finally:
        del main.commands[stop.name or ""]

    assert result.exit_code == 130
    assert "interrupted" in result.stderr.splitlines()


def test_help_imports_no_torch() -> None:
    """Only a command that runs may import torch, which takes seconds; the top of `evenly.cli` must not."""
    heavy = {"torch", "numpy", "rich", "altair", "keras", "joblib", "jinja2"}
    script = (
        "import sys; sys.argv = ['evenly', '--help']\n"
        "from evenly.cli import main\n"
        "try: main()\n"
        f"except SystemExit as leave: print(leave.code, sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "0 []"


def test_explain_prints_the_worked_example() -> None:
    """`evenly explain` shows six batches and the prediction, at most 80 columns wide."""
    result = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(main, ["explain"])

    assert result.exit_code == 0
    for text in ("Batch 1", "Batch 6", "Six means and their running average", "The redundant bias", "1.5299"):
        assert text in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_explain_to_a_closed_pipe_is_no_traceback() -> None:
    """`evenly explain | head -1` ends quietly."""
    command = f"{sys.executable} -m evenly.cli explain | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ, check=True)

    assert "Traceback" not in done.stderr


def test_info_says_what_runs() -> None:
    """`evenly info` names torch, the kernels and the OpenMP runtime; ``--json`` gives the same as an object."""
    import torch

    table = CliRunner().invoke(main, ["info"])
    facts = json.loads(CliRunner().invoke(main, ["info", "--json"]).output)

    assert table.exit_code == 0
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == str(torch.get_num_threads())
    assert facts["kernels"].startswith(("built", "not built"))
    for name, fact in facts.items():
        assert f"{name} " in table.output
        assert fact in table.output


def test_version() -> None:
    """`evenly --version` prints the version that the package states."""
    import evenly

    assert CliRunner().invoke(main, ["--version"]).output == f"evenly {evenly.__version__}\n"
