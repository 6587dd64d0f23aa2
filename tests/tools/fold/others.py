"""What others make of the same networks: torch.fx's ``fuse`` and onnxruntime, as a table of smallest cases.

``python -m tests.tools.fold.others`` writes ``others.json`` beside this file: for each tool, pattern and kind of
fault one network, as (pattern, seed) and rank. A slow test runs each entry again.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from tests.tools.fold import world
from tests.tools.fold.world import Spec

TABLE = Path(__file__).with_name("others.json")
SEEDS = 6


def by_fuse(spec: Spec, rank: int) -> str | None:
    """What is wrong with torch.fx.experimental.optimization.fuse on a network, in float64; None: nothing."""
    from torch.fx.experimental.optimization import fuse

    net = world.build(spec, rank)
    with torch.no_grad():
        right = net.model(net.x)
        try:
            found = fuse(net.model)(net.x)
        except Exception as error:
            return f"raises {type(error).__name__}"
    error = float((found - right).abs().max())
    return "wrong" if error > 1e-10 else None


def by_onnxruntime(spec: Spec, rank: int) -> str | None:
    """What is wrong with the exported network in onnxruntime, in float32, beyond 8 times torch's own error."""
    import onnxruntime

    torch.manual_seed(0)
    net, exact = world.build(spec, rank, torch.float32), world.build(spec, rank)
    exact.model.load_state_dict(
        {k: v.double() if v.is_floating_point() else v for k, v in net.model.state_dict().items()}
    )
    x = torch.cat([net.x, *(torch.randn_like(net.x) for _ in range(6))])  # the worst of many: one may be lucky
    with torch.no_grad():
        right, low = exact.model(x.double()), net.model(x)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            torch.onnx.export(net.model.requires_grad_(False), (x,), f"{folder}/a.onnx", dynamo=True, verbose=False)
            session = onnxruntime.InferenceSession(f"{folder}/a.onnx", providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        except Exception as error:
            return f"raises {type(error).__name__}"
        finally:
            logging.disable(logging.NOTSET)
    own = float((low.double() - right).abs().max())
    floor = torch.finfo(torch.float32).eps * max(1.0, float(right.abs().max()))
    error = float((torch.from_numpy(found).double() - right).abs().max())
    if error <= 8 * max(own, floor):
        return None
    return "wrong" if error > 1e-3 else "less exact than torch"


TOOLS = {"torch.fx fuse": by_fuse, "onnxruntime": by_onnxruntime}


def search(tool: str, seeds: int) -> list[dict[str, Any]]:
    """One network for each pattern and kind of fault; a single pattern is the smallest that there is."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pattern in world.PATTERNS:
        for seed in range(seeds):
            rank = 2 if seed % 2 == 0 else 1 + seed % 3
            spec: Spec = [(pattern, seed)]
            try:
                net = world.build(spec, rank)
                with torch.no_grad():
                    net.model(net.x)
            except (RuntimeError, ValueError):
                continue
            fault = TOOLS[tool](spec, rank)
            if fault is not None and (pattern, fault) not in found:
                found[pattern, fault] = {"tool": tool, "pattern": pattern, "seed": seed, "rank": rank, "fault": fault}
    return list(found.values())


def main() -> int:
    """Write the table."""
    import onnxruntime

    warnings.simplefilter("ignore")
    cases = search("torch.fx fuse", SEEDS) + search("onnxruntime", 1)
    table = {"torch": torch.__version__.split("+")[0], "onnxruntime": onnxruntime.__version__, "cases": cases}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(f"{len(cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
