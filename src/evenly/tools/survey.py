"""`xray` over many files: one row for each, as a table, JSON or a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from evenly.tools import files, remote
from evenly.tools.diagnosis import Diagnosis
from evenly.tools.finding import LEVELS
from evenly.tools.names import visible
from evenly.tools.report import page
from evenly.tools.xray import xray

ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".npz", ".pkl")


@dataclass(frozen=True)
class Row:
    """One file.

    Args:
        source: its name or address.
        norms: batch norms with running statistics.
        worst: the highest level found, or None.
        rules: what was found, the worst first.
        error: why it could not be read, or nothing.
    """

    source: str
    norms: int
    worst: str | None
    rules: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """What `evenly xray` says of many files.

    Args:
        rows: one for each file.
        diagnoses: the whole of it; None for a file that could not be read.
    """

    rows: tuple[Row, ...]
    diagnoses: tuple[Diagnosis | None, ...] = ()

    def exit_status(self, *, strict: bool = False) -> int:
        """1 after an error (``strict``: after a warning, an unreadable file, and where no norm was found), else 0.

        2 where no file could be read.
        """
        if all(r.error for r in self.rows):
            return 2
        bad = any(
            r.worst == "error" or (strict and (r.error or not r.norms or r.worst == "warning")) for r in self.rows
        )
        return int(bad)

    def table(self) -> str:
        """One line for each file."""
        width = max((len(visible(r.source)) for r in self.rows), default=4)
        lines = [f"{'file':<{width}}  norms  worst    found"]
        for r in self.rows:
            said = r.error or ", ".join(r.rules) or ("nothing found" if r.norms else "no norm that I know")
            lines.append(f"{visible(r.source):<{width}}  {r.norms:>5}  {r.worst or '-':<7}  {visible(said)}")
        return "\n".join(lines)

    def to_json(self, path: str | Path | None = None) -> str:
        """The rows as JSON text, and written to ``path`` where one is given."""
        return _given_out(json.dumps([asdict(r) for r in self.rows], indent=1) + "\n", path)

    def to_html(self, path: str | Path | None = None) -> str:
        """A page whose columns sort on a click, and written to ``path`` where one is given.

        Raises:
            ImportError: the ``report`` extra is missing.
        """
        from evenly import __version__

        order = {level: number for number, level in enumerate(LEVELS, 1)}
        return _given_out(page("survey.html", rows=self.rows, order=order, version=__version__), path)


def _given_out(text: str, path: str | Path | None) -> str:
    if path is not None:
        files.write(path, text)
    return text


def survey(sources: Iterable[str | Path]) -> Survey:
    """Look at many files; one that cannot be read becomes a row that says why.

    Args:
        sources: files, folders (every checkpoint in them, by its ending) and addresses of
            safetensors files, of which the norms' tensors alone are fetched.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save(torch.nn.BatchNorm1d(2).state_dict(), folder / "new.pt")
        >>> [(row.norms, row.worst) for row in survey([folder]).rows]
        [(1, 'warning')]
    """
    found = [_row(source) for source in _each(sources)]
    return Survey(tuple(row for row, _ in found), tuple(diagnosis for _, diagnosis in found))


def _each(sources: Iterable[str | Path]) -> Iterator[str]:
    for source in sources:
        path = Path(source)
        if not _address(str(source)) and path.is_dir():
            yield from (str(p) for p in sorted(path.rglob("*")) if p.suffix in ENDINGS and p.is_file())
        else:
            yield str(source)


def _address(source: str) -> bool:
    return source.startswith(("https://", "http://"))


def _row(source: str) -> tuple[Row, Diagnosis | None]:
    try:
        found = xray(remote.read(source)) if _address(source) else xray(source)
    except (ValueError, OSError) as error:
        return Row(source, 0, None, (), str(error)), None
    rules = tuple(dict.fromkeys(f.rule for f in found.findings))
    return Row(source, len(found.layers), found.worst, rules), found
