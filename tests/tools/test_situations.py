"""Situations that happen to people: each is named, and no file that is written scores less than before."""

from __future__ import annotations

import json

import pytest
from tests.tools.situations import RESULTS, SITUATIONS, run


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_is_named_and_none_is_harmed(name):
    """The rule and its level are among what is said; a file that is written restores accuracy."""
    situation = SITUATIONS[name]

    result = run(name)

    if situation.rule:
        assert [situation.rule, situation.level] in [list(pair) for pair in result["said"]], result
    else:
        assert not result["said"]
        assert any("not seen" in line for line in result["examined"])
    if result["after"] is not None:
        assert result["after"] > result["before"] + 1


def test_the_table_of_the_docs_is_of_these():
    """The committed results name every situation and no other."""
    assert json.loads(RESULTS.read_text("utf-8")).keys() == SITUATIONS.keys()
