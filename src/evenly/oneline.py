"""How the command line answers: wrong use in one line, and no name that a terminal would obey."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from evenly.tools import names

# What the machine says, and no bug of ours: no space, too large, read only, a broken disk.
_MACHINE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)


class OneLineErrors(click.Group):
    """A group of commands that answers wrong use with one line and exit status 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; leave by `sys.exit` with its status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal without a sign shows its number
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(args, prog_name, complete_var, False, **extra)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "evenly"
            click.echo(f"{command}: {names.line(error.format_message())} ({command} --help says more)", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in _MACHINE:
                raise
            click.echo(f"evenly: {names.line(error)}", err=True)
            sys.exit(2)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def wrong_use() -> Iterator[None]:
    """Turn a tool's refusal of what the user typed into one line and exit status 2.

    Put only the checks inside, not the work: a `ValueError` there would be a bug of ours, and a bug
    deserves its traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        known = isinstance(error, OSError) and error.filename is not None
        message = f"{error.filename}: {error.strerror}" if known else str(error)  # type: ignore[union-attr]
        raise click.UsageError(message, click.get_current_context(silent=True)) from None


def say(text: str, *, err: bool = False) -> None:
    """Print lines of ours; what else a terminal would obey, from a name in them, is made visible."""
    click.echo(names.block(text), err=err)


def examples(*lines: str) -> str:
    r"""An epilog of examples; ``\b`` keeps click from re-wrapping them."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
