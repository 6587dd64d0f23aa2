"""Files written whole or not at all, never onto what is read; and files that are still what was read."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

Name = str | os.PathLike[str]
_CHUNK = 1 << 20


def check_outputs(outputs: Mapping[str, Name | None], inputs: Iterable[Name | None] = ()) -> None:
    """Refuse what cannot be written, before any work is done.

    Args:
        outputs: files by what asks for them, such as ``"--json"``; None where nothing does.
        inputs: files that are read.

    Raises:
        ValueError: an output is an input, or another output (also by a link), or a folder, or its folder
            does not exist or cannot be written to.
    """
    asked = {option: Path(name) for option, name in outputs.items() if name is not None}
    read = [Path(name) for name in inputs if name is not None]
    for option, path in asked.items():
        if any(_same(path, other) for other in read):
            raise ValueError(f"{option} {path} is a file that is read; give the output another name.")
        twin = next((o for o, other in asked.items() if o != option and _same(path, other)), None)
        if twin is not None and not _stream(path):
            raise ValueError(f"{option} and {twin} would both write {path}; give each a file of its own.")
        _check_writable(option, path)


def _same(one: Path, other: Path) -> bool:
    """Whether two names lead to one file, by whatever links; also where it does not exist yet."""
    with suppress(OSError):
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def _stream(path: Path) -> bool:
    """Whether a name leads to something that is no file: a pipe, a terminal, /dev/null."""
    with suppress(OSError):
        return not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
    return False


def _check_writable(option: str, path: Path) -> None:
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file in it.")
    if _stream(path):
        return
    if not target.parent.is_dir():
        raise ValueError(f"{option}: cannot write {path}: there is no folder {target.parent}.")
    try:
        if target.exists():
            target.open("r+b").close()
        with tempfile.TemporaryFile(dir=target.parent, prefix=".writable-"):
            pass
    except OSError as error:
        raise ValueError(f"{option}: cannot write {path}: {error.strerror or error}.") from None


@contextmanager
def replacing(path: Name) -> Iterator[BinaryIO]:
    """A file that takes the name ``path`` when the block ends well, and leaves no trace when it does not.

    It is written beside the old one, which stays as it was until the new one is on the disk. A link
    is followed, and its target replaced; what is no file (a pipe, a terminal) is written to as it is.

    Raises:
        OSError: it cannot be written.
    """
    if _stream(Path(path)):
        with open(path, "wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    number, name = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def write(path: Name, content: str | bytes, *, inputs: Iterable[Name | None] = ()) -> None:
    """Write a file whole, or leave everything as it was.

    Raises:
        ValueError: ``path`` is one of the ``inputs``.
        OSError: it cannot be written.
    """
    if any(_same(Path(path), Path(name)) for name in inputs if name is not None):
        raise ValueError(f"{path} is a file that is read; give the output another name.")
    with replacing(path) as file:
        # A surrogate (half a sign, from a file's name) has no bytes of its own; JSON reads the escape as what it was.
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


def _mode(target: Path) -> int:
    """The old file's permissions, or those of any new file."""
    with suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def stamp(file: BinaryIO) -> tuple[int, ...]:
    """What changes with an open file: which it is, how long, and when it was last written."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def digest(file: BinaryIO) -> str:
    """SHA-256 of a file from its start."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def copy(source: BinaryIO, target: BinaryIO) -> str:
    """Copy a file from its start; returns the digest of what was copied."""
    found = hashlib.sha256()
    source.seek(0)
    while chunk := source.read(_CHUNK):
        found.update(chunk)
        target.write(chunk)
    return found.hexdigest()
