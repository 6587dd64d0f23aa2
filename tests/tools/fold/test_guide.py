"""The guide "Deploying": its network is folded, and prints what stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "deploy.md"


def test_the_guides_output_is_what_the_command_prints(tmp_path: Path) -> None:
    """Layers, rules and reasons to the letter; errors, which differ between machines, by their form."""
    text = GUIDE.read_text("utf-8")
    (module,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def build" in block)
    command, expected = re.search(r"```text\n\$ evenly (.*?)\n(.*?)```", text, re.DOTALL).groups()  # type: ignore[union-attr]
    (tmp_path / "nets.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-m", "evenly.cli", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert re.sub(r"\d\.\de-\d+", "E", done.stdout).startswith(re.sub(r"\d\.\de-\d+", "E", expected)), done.stdout
