"""The experiments: one file per question."""

from importlib import import_module

from evenly.lab.experiment import Experiment

# In the order of the report. The first four are the default run.
NAMES = ("paper", "learning_rate", "initialization", "inference")
DEFAULT = ("paper", "learning_rate", "initialization", "inference")

EXPERIMENTS: dict[str, Experiment] = {
    name: import_module(f"evenly.lab.experiments.{name}").EXPERIMENT for name in NAMES
}  # fmt: skip
