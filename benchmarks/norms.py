"""Every list of shapes, one results file each: what the tables of ``docs/benchmarks.md`` are made from.

    python benchmarks/norms.py [--only resnet50,small] [--out benchmarks/results]

Run it on a machine that does nothing else, then ``make docs``. Each file holds the copy, evenly,
its kernels alone and torch eager, cold; about a minute a file on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from evenly.bench import main as bench

RUNS: dict[str, dict[str, Any]] = {
    "resnet50": {"shapes": ["resnet50"]},
    "resnet50-last": {"shapes": ["resnet50"], "layout": "last"},
    "resnet50-residual": {"shapes": ["resnet50"], "residual": True},
    "resnet50-bfloat16": {"shapes": ["resnet50"], "dtype": "bfloat16"},
    "resnet50-avx2": {"shapes": ["resnet50"], "isa": "x86-64-v3"},
    "mobilenetv2": {"shapes": ["mobilenetv2"]},
    "cifar": {"shapes": ["cifar", "dense"]},
    "small": {"shapes": ["small"]},
    "unet3d": {"shapes": ["unet3d"]},
    "rows": {"shapes": ["rows"]},
    "group": {"shapes": ["group"]},
    "huge": {"shapes": ["huge"], "rounds": 3},
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(RUNS), help="runs: a,b")
    parser.add_argument("--peers", default="torch,kernels", help="who to measure beside evenly: a,b")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        if name not in RUNS:
            raise SystemExit(f"unknown run {name!r}; known are {', '.join(RUNS)}.")
        asked = {"rounds": 5, "warm": False, "peers": options.peers.split(","), **RUNS[name]}
        isa = asked.pop("isa", os.environ.get("EVENLY_ISA"))
        if isa != os.environ.get("EVENLY_ISA"):  # it is chosen once in a process
            again = [sys.executable, __file__, "--only", name, "--peers", options.peers, "--out", str(options.out)]
            subprocess.run(again, env={**os.environ, "EVENLY_ISA": isa}, check=True)
            continue
        bench.carry_out(bench.plan(json_file=str(options.out / f"{name}.json"), **asked))


if __name__ == "__main__":
    main()
