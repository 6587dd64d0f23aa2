"""The experiments: one file per question."""

from importlib import import_module

from evenly.lab.experiment import Experiment
from evenly.lab.questions import DEFAULT, NAMES

__all__ = ["DEFAULT", "EXPERIMENTS", "NAMES"]

EXPERIMENTS: dict[str, Experiment] = {
    name: import_module(f"evenly.lab.experiments.{name}").EXPERIMENT for name in NAMES
}  # fmt: skip
