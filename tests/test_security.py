"""The security page: every promise has its test, every number is the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evenly.tools import archive, names, pickles, rebuild, safetensors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
PROMISES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), PROMISES, ids=[name for _, name in PROMISES])
def test_every_promise_names_a_test_that_exists(file: str, name: str) -> None:
    """A function of that name is in that file."""
    assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")


def test_every_promise_has_a_test() -> None:
    """No point of a list, and no section, is without one."""
    assert len(PROMISES) > 20
    for section in PAGE.split("\n## ")[1:]:
        assert "::test_" in section
    for point in re.findall(r"^- .*$", PAGE, re.MULTILINE):
        assert "::test_" in point, point


def test_the_numbers_are_those_of_the_code() -> None:
    """Each limit as the table gives it."""
    told = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE))
    limits = {
        "bytes of all tensors together, views of shared storages included": (
            f"{rebuild.MOST_VIEWED} times the file's size"
        ),
        "steps of a file's pickles": (
            f"{pickles.MOST_STEPS:,}, and one more for each {pickles.BYTES_A_STEP:,} bytes of the file"
        ),
        "bytes of a whole number in a pickle": f"{pickles.LONGEST_NUMBER}",
        "modules in a pickled model": f"{rebuild.MOST_MODULES:,}",
        "entries of a zip archive": f"{archive.MOST_ENTRIES:,}",
        "bytes that compressed arrays unfold to": (
            f"{archive.UNPACKED >> 20} MiB and {archive.UNPACKED_TIMES} times the file's size"
        ),
        "header of a safetensors file, or an index": f"{safetensors.LONGEST_HEADER >> 20} MiB",
        "tensors in a safetensors header": f"{safetensors.MOST_TENSORS:,}",
    }
    for limit, value in limits.items():
        assert told[limit] == value
    assert f"beyond {names.LONGEST} signs" in PAGE
