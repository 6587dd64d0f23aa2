"""Names: whatever is in them, a terminal obeys nothing, a line stays one, a page and a picture are made."""

from __future__ import annotations

import json
import unicodedata
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from evenly.cli import main
from evenly.tools import names
from evenly.tools.watch import watch
from evenly.tools.xray import xray

HOSTILE = {
    "escape": "a\x1b[2J\x1b]0;owned\x07", "one-byte escape": "a\x9b2J", "lines": "a\nhealthy: nothing found\r\rb",
    "direction": "a\u202egnp.\u2066x", "invisible": "a\u200b\ufeff\u00ad", "null": "a\0b", "backspace": "a\x08\x7f",
    "separators": "a\u2028b\u2029c\x85d\x0b\x0c", "surrogate": "a\udcff", "private": "a\ue000\U000f0000",
    "tags": "a\U000e0041", "long": "a" * 100_000, "html": "<script>alert(1)</script>&amp;", "markup": "[bold]a[/]",
    "braces": "{{ 7 * 7 }}{% raw %}", "noncharacter": "a\uffff\ufffe",
}  # fmt: skip
SHOWN_NEVER = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _visible(text: str) -> bool:
    return all(sign == "\n" or unicodedata.category(sign) not in SHOWN_NEVER for sign in text)


def _sick(name):
    """A state_dict with a finding about a norm of this name."""
    state = nn.BatchNorm1d(3).state_dict(prefix=f"{name}.")
    state[f"{name}.running_var"][1] = float("nan")
    return state


@pytest.mark.parametrize("kind", HOSTILE)
def test_text_becomes_visible_and_no_longer(kind):
    """Every sign can be seen, one line stays one, and a name is no longer than the limit."""
    shown = names.visible(HOSTILE[kind])

    assert _visible(shown)
    assert "\n" not in shown
    assert len(shown) <= 8 * names.LONGEST
    assert names.visible(shown) == shown


def test_ordinary_names_are_shown_as_they_are():
    """Letters of any script, and spaces, are signs to be seen."""
    for name in ("layer1.0.bn1", "层.归一化", "été.bn", "a b", "módulo-1"):
        assert names.visible(name) == name


@pytest.mark.parametrize("kind", HOSTILE)
def test_names_of_a_checkpoint_on_the_terminal(tmp_path, kind):
    """`evenly xray` with such a name in the file prints a table of visible signs and bounded lines."""
    torch.save(_sick(HOSTILE[kind]), path := tmp_path / "m.pt")

    result = CliRunner().invoke(main, ["xray", str(path)])

    assert result.exit_code == 1, result.output
    assert _visible(result.output)
    assert max(map(len, result.output.splitlines())) < 2000


def test_names_of_a_checkpoint_on_a_page_in_a_picture_and_in_json(tmp_path):
    """All of them in one file: a page and a drawing that can be read, and JSON with each name as it is."""
    state = {key: value for name in HOSTILE.values() for key, value in _sick(name).items()}
    torch.save(state, path := tmp_path / "m.pt")
    page, out = tmp_path / "x.html", tmp_path / "x.json"

    CliRunner().invoke(main, ["xray", str(path), "--html", str(page), "--json", str(out)], catch_exceptions=False)

    text = page.read_text("utf-8")
    assert _visible(text)
    assert "<script" not in text
    ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    assert set(json.loads(out.read_text("utf-8"))["findings"][0]["layers"]) == set(HOSTILE.values())


@pytest.mark.parametrize("kind", [k for k in HOSTILE if k not in ("null", "long")])
def test_names_of_files(tmp_path, kind):
    """A file with such a name is read, or refused, in visible lines."""
    name = HOSTILE[kind].replace("/", "-")
    for content in (_sick("bn"), [1]):
        torch.save(content, path := tmp_path / name)
        result = CliRunner().invoke(main, ["xray", str(path)])

        assert result.exit_code == (1 if isinstance(content, dict) else 2), result.output
        assert _visible(result.output)
        if isinstance(content, list):
            assert len(result.output.splitlines()) == 1


def test_names_of_modules_on_the_page_of_a_watch(tmp_path):
    """Modules registered under such names are watched and shown."""
    model = nn.Sequential()
    for name in HOSTILE.values():
        model.add_module(name.replace(".", ""), nn.BatchNorm1d(3))
    with watch(model, every=1) as history:
        model(torch.randn(8, 3))
    history.to_html(path := tmp_path / "x.html")

    assert _visible(path.read_text("utf-8"))
    assert "<script" not in path.read_text("utf-8")


def test_wrong_words_on_the_command_line_are_visible(tmp_path):
    """What is refused is quoted without what a terminal would obey."""
    for arguments in (
        ["xray", str(tmp_path / "no\x1b[2J\nfile")],
        ["lab", "pa\x1bper"],
        ["diagnose", "a\x1b:b", "--data", "c:d"],
    ):
        result = CliRunner().invoke(main, arguments)

        assert result.exit_code == 2
        assert len(result.output.splitlines()) == 1
        assert _visible(result.output)


def test_a_diagnosis_from_a_state_dict_is_visible_too():
    """The table of the Python function as well."""
    assert _visible(xray(_sick(HOSTILE["escape"])).table())
