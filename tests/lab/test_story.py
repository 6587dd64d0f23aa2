"""The written story: in step with the measured claims, and without a number of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

from evenly.lab.experiments import NAMES

ROOT = Path(__file__).parents[2]
TEMPLATE = (ROOT / "docs" / "templates" / "story.md.j2").read_text("utf-8")


def test_no_number_is_typed_by_hand() -> None:
    """Outside formulas and what is generated, the only figures are the year, the width of intervals, and figure 1's."""
    prose = re.sub(r"```.*?```|\{\{.*?\}\}", "", TEMPLATE, flags=re.DOTALL)

    assert set(re.findall(r"\d[\d.,]*\d|\d", prose)) <= {"2015", "95", "1", "15", "85"}


def test_it_asks_for_claims_that_exist() -> None:
    """Each claim that the text calls for is one of an experiment's, and the page shows every committed claim."""
    asked = re.findall(r'seen\("(\w+)", \d', TEMPLATE)
    page = (ROOT / "docs" / "story.md").read_text("utf-8")
    committed = [
        record
        for form in ("quick", "full")
        for record in json.loads((ROOT / "docs" / "results" / f"lab_{form}.json").read_text("utf-8"))["claims"]
    ]

    assert set(asked) <= set(NAMES)
    for record in committed:
        assert record["experiment"] in NAMES
        rests = f"exact, {record['seeds']} checks" if record.get("exact") else f"n = {record['seeds']}"
        assert f"{record['measured']}, {rests}" in page
