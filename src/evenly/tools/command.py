"""What the commands `xray` and `diagnose` do: find the user's model, load its file, write what is asked."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from evenly.tools.diagnosis import Diagnosis
from evenly.tools.survey import Survey

_NOT_USERS = (str(Path(__file__).parents[1]), "<frozen", os.path.dirname(os.__file__) + os.sep + "importlib")


def named(place: str) -> Any:
    """The object at ``MODULE:NAME``; modules of the current folder are found as well.

    Raises:
        ValueError: the text has no colon, there is no such module, it fails when it is imported, or has no such name.
    """
    module, colon, name = place.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"{place!r} names no object; write MODULE:NAME, such as train:model.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = ran(f"importing {module}", import_module, module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {name!r}.")
        found = getattr(found, part)
    return found


def ran(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What code of the user's returns; what it raises is said in one line, with the place.

    Raises:
        ValueError: it raised, or called `sys.exit`.
    """
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        # The innermost line of the user's: neither ours nor the import machinery's.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_USERS)]
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(f"{what} failed: {reason}{where}; run from the folder it is in, and mend it there.") from None


def code() -> list[str]:
    """The files of all modules that are loaded: they are read, so no output may replace them."""
    found = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return [file for file in found if isinstance(file, str)]


def model_at(place: str) -> nn.Module:
    """The model at ``MODULE:NAME``, or what the function or class there returns."""
    found = named(place)
    if not isinstance(found, nn.Module) and callable(found):
        found = ran(f"calling {place}", found)
    if not isinstance(found, nn.Module):
        raise ValueError(f"{place} is {type(found).__name__}; it must be a torch.nn.Module, or return one.")
    return found


def batches_at(place: str) -> Iterable[Any]:
    """The batches at ``MODULE:NAME``, or what the function there returns."""
    found = named(place)
    if not isinstance(found, Iterable) and callable(found):
        found = ran(f"calling {place}", found)
    if not isinstance(found, Iterable):
        raise ValueError(f"{place} is {type(found).__name__}; it must be an iterable of batches, or return one.")
    return found


def write(diagnosis: Diagnosis | Survey, html: str | None, json: str | None) -> None:
    """The page and the JSON file, where they are asked for; ``-`` is standard output."""
    if json == "-":
        sys.stdout.write(diagnosis.to_json())
    elif json is not None:
        diagnosis.to_json(json)
    if html is not None:
        diagnosis.to_html(html)


def outputs(html: str | None, json: str | None) -> dict[str, str | None]:
    """The files that a command writes, by option."""
    return {"--html": html, "--json": None if json == "-" else json}


def mended(diagnosis: Diagnosis, path: str, *, force: bool) -> str:
    """What became of ``--fix``, in words; nothing to mend is no error."""
    if diagnosis.chosen is None:
        return f"{path} is not written: nothing is lost that a file could restore."
    if diagnosis.refused and not force:
        return f"{path} is not written: {diagnosis.refused} (--force writes it all the same)"
    trial = diagnosis.fix(path, force=force)
    return f"{trial.name}: {diagnosis.mended}"


def are_many(sources: Sequence[str]) -> bool:
    """Whether a table is wanted: several files, a folder, or an address."""
    return len(sources) > 1 or "://" in sources[0] or Path(sources[0]).is_dir()


def on_disk(sources: Iterable[str]) -> list[str]:
    """Those of the sources that are files here."""
    return [source for source in sources if Path(source).is_file()]
