"""The small network that `evenly demo` spoils in five ways.

python examples/spoiled.py FOLDER          writes good.pt and five spoiled checkpoints
cd examples
evenly diagnose spoiled:build --data spoiled:batches --weights FOLDER/nan.pt --fix FOLDER/mended.pt
"""

from __future__ import annotations

import sys

from evenly.tools.spoiled import WAYS, batches, build, digits, main, train

__all__ = ["WAYS", "batches", "build", "digits", "main", "train"]

if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "spoiled")
