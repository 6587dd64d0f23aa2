"""Write the generated parts of README.md and docs/ from code and committed results, or check them.

A page holds a generated part between two marks, ``<!-- generated: NAME -->`` and ``<!-- end NAME -->``;
`PARTS` names the function that writes it. Run as ``python docs/generate.py [--check]``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)


def explain() -> str:
    """The worked example, as `evenly explain` prints it."""
    from evenly.lab import explain_page

    return explain_page.markdown()


PAGES: dict[str, Callable[[], str]] = {"docs/explain.md": explain}
PARTS: dict[str, Callable[[], str]] = {}


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
