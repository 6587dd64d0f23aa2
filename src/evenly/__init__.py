"""evenly: batch normalization and its family, fast, honest and visible."""

from __future__ import annotations

from typing import Any
