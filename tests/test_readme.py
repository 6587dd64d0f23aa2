"""Every example in README.md, CONTRIBUTING.md and docs/ runs, and generated parts are in step."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"(?P<note><!-- not run: .+? -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str) -> list[tuple[int, str]]:
    """Line number and code of each python block, but those under ``<!-- not run: reason -->``."""
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in FENCE.finditer(text) if not m["note"]]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.exists() and blocks(p.read_text("utf-8"))], ids=lambda p: p.name
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's python blocks run in order in one namespace, and prompts show what is printed."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for line, code in blocks(page.read_text("utf-8")):
        if ">>>" in code:
            example = doctest.DocTestParser().get_doctest(code, namespace, page.name, str(page), line)
            report: list[str] = []
            runner.run(example, out=report.append, clear_globs=False)
            namespace |= example.globs

            assert not runner.failures, "".join(report)
        else:
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file of the repository."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    missing = [link for link in LINK.findall(prose) if not (page.parent / link).exists()]

    assert missing == []


def test_every_page_can_be_reached() -> None:
    """Each page of docs/ is linked from README or from docs/index.md."""
    linked = {
        (page.parent / link).resolve()
        for page in (ROOT / "README.md", ROOT / "docs" / "index.md")
        for link in LINK.findall(page.read_text("utf-8"))
    }

    assert sorted(set((ROOT / "docs").rglob("*.md")) - linked - {ROOT / "docs" / "index.md"}) == []
