"""The experiments: one file per question."""

from importlib import import_module

from evenly.lab.experiment import Experiment

# In the order of the report.
NAMES = (
    "paper", "convergence", "learning_rate", "initialization", "depth", "distributions", "placement", "bias",
    "inference", "batch_size", "sequence", "sync", "family", "why", "explain",
)  # fmt: skip
DEFAULT = ("paper", "learning_rate", "initialization", "inference")

EXPERIMENTS: dict[str, Experiment] = {
    name: import_module(f"evenly.lab.experiments.{name}").EXPERIMENT for name in NAMES
}  # fmt: skip
