"""The articles: a row for each statement of the lesson, and the same rows, figures and commands in both languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evenly.lab.lesson import LESSON, STATEMENTS
from evenly.lab.questions import DEFAULT

ROOT = Path(__file__).parents[2]
PAGES = {lang: (ROOT / "docs" / f"article{lang}.md").read_text("utf-8") for lang in ("", ".zh-CN")}
RUN = json.loads((ROOT / "docs" / "results" / "lab_quick.json").read_text("utf-8"))
# What the lesson says, in its order. Whoever takes a statement out of the article takes it out here, too.
SAID = {
    "problem": ["drift", "small_rates", "careful_start", "few_layers"],
    "method": ["mean", "deviation", "rescale", "why_rescale", "steady", "three", "placement"],
    "prediction": ["six_means", "one_sample", "running"],
    "gains": ["speed", "rates", "initialization", "depth"],
    "weak": ["small_batch", "recurrent", "sync"],
    "successors": ["company", "layer", "instance", "group"],
    "keras": ["keras"],
}
ROW = re.compile(
    r"^\*\*(?P<number>\d+)\. (?P<sentence>.+)\*\*\n\n"
    r"!\[(?P<claim>.+)\]\((?P<picture>.+\.svg)\)\n\n(?P<see>.+)\n\n"
    r"> (?P=claim)[:：] ?\*\*(?P<verdict>[✓✗]) .+\n> (?P<measured>.+)\n>\n> `(?P<command>evenly lab \w+)`$",
    re.MULTILINE,
)


def rows(lang: str) -> list[dict[str, str]]:
    """The rows of one article."""
    return [match.groupdict() for match in ROW.finditer(PAGES[lang])]


def test_the_lesson_says_what_it_said() -> None:
    """The statements are those of the list above, in its order, and all belong to the default run."""
    assert {part.key: [s.key for s in part.statements] for part in LESSON} == SAID
    assert {s.experiment for s in STATEMENTS} == set(DEFAULT)


@pytest.mark.parametrize("lang", PAGES)
def test_every_statement_has_its_row(lang: str) -> None:
    """A sentence, a picture that exists, a settled verdict with its number, and the command: for each statement."""
    found = rows(lang)

    assert [int(row["number"]) for row in found] == list(range(1, sum(map(len, SAID.values())) + 1))
    for row, statement in zip(found, STATEMENTS, strict=True):
        assert row["command"] == f"evenly lab {statement.experiment}"
        assert row["picture"] == f"assets/lesson/{statement.chart}.svg"
        assert (ROOT / "docs" / row["picture"]).read_text("utf-8").startswith("<svg")
        assert re.search(r"\[.+, .+\].*n = \d+|[\d.e-]+.*\d+ (times|次)", row["measured"])


def test_both_languages_show_the_same() -> None:
    """Verdicts, pictures and commands agree row by row, and so do the figures that were measured."""
    for english, chinese in zip(rows(""), rows(".zh-CN"), strict=True):
        for part in ("number", "picture", "command", "verdict"):
            assert english[part] == chinese[part]
        last = [re.split(r": |：", row["measured"])[-1] for row in (english, chinese)]
        assert figures(last[0]) == figures(last[1])
        assert english["sentence"] != chinese["sentence"]


def figures(text: str) -> list[str]:
    """Its numbers."""
    return re.findall(r"-?\d[\d.,e-]*", text)


def test_every_claim_of_the_lesson_is_settled() -> None:
    """The committed run told each statement's claim one way or the other, and its claim is one of the experiment's."""
    judged = {(r["experiment"], r["claim"]): r["outcome"] for r in RUN["claims"]}

    for statement in STATEMENTS:
        assert judged[statement.experiment, statement.claim] in ("holds", "does not hold")
