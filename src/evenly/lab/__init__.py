"""The lab: one question per experiment, on real data, judged by rule.

Example:
    >>> from evenly.lab import EXPERIMENTS
    >>> EXPERIMENTS["learning_rate"].question
    'Does it bear larger learning rates?'
"""

from typing import Any

__all__ = ["EXPERIMENTS", "Interval", "Verdict", "run"]

_HOME = {"EXPERIMENTS": "experiments", "Interval": "judge", "Verdict": "judge", "run": "run"}


def __getattr__(name: str) -> Any:
    # Lazily: the command line asks for one file of the lab at a time, and torch takes two seconds.
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'evenly.lab' has no attribute {name!r}")
    import_module("evenly.lab.command").require_extra()
    value = getattr(import_module(f"evenly.lab.{_HOME[name]}"), name)
    globals()[name] = value
    return value
