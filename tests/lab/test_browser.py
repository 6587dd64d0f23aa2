"""The report in a browser: opened from disk, moved, switched, and quiet."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evenly.lab.plan import plan
from evenly.lab.run import execute

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--enable-logging=stderr",
]  # fmt: skip

# What a reader does, done by the page itself; what was seen ends up in one attribute.
READER = """
<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const pathsOf = (name) =>
  [...document.querySelectorAll(`[data-chart="${name}"] svg path`)].map((p) => p.getAttribute("d")).join();
window.addEventListener("load", async () => {
  const seen = { errors: [] };
  window.addEventListener("error", (e) => seen.errors.push(String(e.message)));
  window.addEventListener("unhandledrejection", (e) => seen.errors.push(String(e.reason)));
  while (document.documentElement.dataset.ready !== "yes") await pause(20);
  seen.drawn = [...document.querySelectorAll("[data-chart]")].every((c) => c.querySelector("svg path"));
  seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
  const input = document.querySelector(".slider input"), output = document.querySelector(".slider output");
  const before = pathsOf("distributions");
  input.value = 5;
  input.dispatchEvent(new Event("input"));
  await pause(100);
  seen.slid = pathsOf("distributions") !== before;
  seen.label = output.textContent;
  document.querySelector(".play").click();
  await pause(900);
  seen.played = Number(input.value) > 5;
  document.querySelector(".play").click();
  const stopped = input.value;
  await pause(600);
  seen.stopped = input.value === stopped;
  const moved = pathsOf("distributions"), ink = () => getComputedStyle(document.body).color;
  const label = () => document.querySelector("[data-chart] svg text").getAttribute("fill");
  const [theme, color, fill] = [document.documentElement.dataset.theme, ink(), label()];
  document.getElementById("theme").click();
  await pause(1500);
  seen.switched = document.documentElement.dataset.theme !== theme && ink() !== color && label() !== fill;
  seen.kept = pathsOf("distributions") === moved;
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.fetched = fetched.filter((name) => !name.startsWith("data:"));
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of short runs, with a slider, opened by a reader."""
    out = tmp_path_factory.mktemp("report")
    work = plan(["distributions", "bias", "paper"], seeds=2, jobs=1, out=out)
    cells = tuple(replace(cell, setting=replace(cell.setting, steps=12)) for cell in work.cells)
    execute(replace(work, cells=cells), Console(quiet=True))
    read = out / "read.html"
    before, end, after = (out / "report.html").read_text().rpartition("</body>")
    read.write_text(before + READER + end + after)
    return read


def open_page(page: Path, profile: Path, width: int) -> tuple[dict[str, Any], list[str]]:
    """What the reader saw, and what the console said."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *QUIET_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900",
         "--virtual-time-budget=15000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, f"the reader did not finish: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1100, 500], ids=["desktop", "narrow"])
def test_a_reader_can_move_switch_and_play(page: Path, tmp_path: Path, width: int) -> None:
    """Charts draw, the slider moves, play plays and pauses, the theme switches; no error, no request."""
    seen, console = open_page(page, tmp_path, width)

    assert console == []
    assert seen.pop("errors") == []
    assert seen.pop("fetched") == []
    assert seen.pop("label").startswith("step ")
    assert seen == dict.fromkeys(("drawn", "wide", "slid", "played", "stopped", "switched", "kept"), True)
