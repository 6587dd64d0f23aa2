"""The networks of `evenly demo`: each is found and mended by the command, from the file."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from evenly.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder that `evenly demo` writes: the module, the good checkpoint and five spoiled ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for a second thread
    folder = tmp_path_factory.mktemp("spoiled") / "demo"
    with torch.random.fork_rng():
        written = CliRunner().invoke(main, ["demo", str(folder)])
    torch.set_num_threads(threads)
    assert written.exit_code == 0, written.output
    assert f"cd {folder}" in written.output
    return folder


def _evenly(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _diagnose(file, *options):
    return _evenly("diagnose", "spoiled:build", "--data", "spoiled:batches", "--weights", file, *options)


@pytest.fixture
def here(monkeypatch, files):
    """The commands run in the folder of the demo."""
    monkeypatch.chdir(files)
    monkeypatch.syspath_prepend(str(files))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("way", ["reset", "nan", "momentum", "forgotten", "averaged"])
def test_each_is_found_and_mended(way, files, tmp_path):
    """Status 1 and an error for the spoiled file; status 0 and nothing for the one that --fix wrote."""
    out, told = tmp_path / "mended.pt", tmp_path / "d.json"
    before = (files / f"{way}.pt").read_bytes()

    spoiled = _diagnose(files / f"{way}.pt", "--fix", out, "--json", told)

    assert spoiled.exit_code == 1, spoiled.output
    values = json.loads(told.read_text())
    assert values["findings"][0]["level"] == "error"
    assert values["gap"]["lost"] >= 5
    assert f"wrote {out}, measured on 512 samples" in spoiled.output
    mended = _diagnose(out)
    assert mended.exit_code == 0, mended.output
    assert "no more apart than chance explains" in mended.output
    assert torch.load(out).keys() == torch.load(files / f"{way}.pt").keys()
    assert (files / f"{way}.pt").read_bytes() == before


@pytest.mark.usefixtures("here")
def test_the_good_one_is_left_alone(files, tmp_path):
    """Nothing found, nothing written, status 0."""
    result = _diagnose(files / "good.pt", "--fix", tmp_path / "out.pt", "--strict")

    assert result.exit_code == 0
    assert "is not written" in result.output
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.usefixtures("here")
def test_the_page_is_self_contained(files, tmp_path):
    """Before, after, culprit, picture and command, without a script or a link to anything outside."""
    page, again = tmp_path / "card.html", tmp_path / "xray.html"
    _diagnose(files / "reset.pt", "--html", page)
    _evenly("xray", files / "reset.pt", "--html", again)

    for text in (page.read_text(), again.read_text()):
        assert "never-updated" in text
        assert "<svg" in text
        assert not any(word in text for word in ("<script", "<link", "@import", "src=", 'href="http'))
    assert all(word in page.read_text() for word in ("before", "after: recalibrate 4 alone", "channel", "evenly "))


def test_xray_of_a_file(files, tmp_path):
    """The reset layer is seen without data; JSON says the same; strict counts warnings."""
    result = _evenly("xray", files / "reset.pt", "--json", tmp_path / "x.json")

    assert result.exit_code == 1
    assert "never-updated: 4" in result.output
    assert json.loads((tmp_path / "x.json").read_text())["worst"] == "error"
    assert _evenly("xray", files / "good.pt", "--strict").exit_code == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("xray", "spoiled.py"), "cannot be read as a checkpoint"),
        (("xray", "nowhere.pt"), "No such file"),
        (("diagnose", "spoiled", "--data", "spoiled:batches"), "write MODULE:NAME"),
        (("diagnose", "spoiled:nothing", "--data", "spoiled:batches"), "spoiled has no 'nothing'"),
        (("diagnose", "spoiled:digits", "--data", "spoiled:batches"), "must be a torch.nn.Module"),
        (("diagnose", "spoiled:build", "--data", "spoiled:WAYS.x"), "spoiled has no 'WAYS.x'"),
        (("diagnose", "spoiled:build"), "Missing option '--data'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments, message):
    """What was typed wrong is said in one line."""
    result = _evenly(*arguments)

    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.usefixtures("here")
def test_fix_refuses_the_file_that_is_read(files):
    """--fix onto --weights is wrong use, before anything runs."""
    result = _diagnose(files / "nan.pt", "--fix", files / "nan.pt")

    assert result.exit_code == 2
    assert "another name" in result.output
