"""`evenly demo`: a small network trained on digits, spoiled in five ways, and the module that loads it."""

from __future__ import annotations

import shutil
from pathlib import Path


def write(folder: Path) -> list[str]:
    """Write the module and the checkpoints, and return the lines that try them.

    Args:
        folder: made where it does not exist.

    Raises:
        ValueError: it exists and holds other files of these names.
    """
    from evenly.tools import spoiled

    target = folder / "spoiled.py"
    source = Path(spoiled.__file__)
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise ValueError(f"{target} exists and is another; name an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    spoiled.main(str(folder))
    return [
        f"cd {folder}",
        "evenly xray reset.pt",
        "evenly diagnose spoiled:build --data spoiled:batches --weights reset.pt --fix mended.pt",
    ]
