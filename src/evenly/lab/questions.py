"""The questions of the lab in the order of the lesson: the one file that needs none of the extra's packages."""

from __future__ import annotations

QUESTIONS = {
    "distributions": "Do layer inputs stay put?",
    "paper": "Does figure 1 of the 2015 paper come out again?",
    "explain": "What happens in one epoch, number by number?",
    "affine": "Why are a weight γ and a bias β learned?",
    "bias": "Is the bias before it redundant?",
    "placement": "Before or after the activation?",
    "inference": "What does the running average cost or save?",
    "convergence": "Does it converge sooner?",
    "learning_rate": "Does it bear larger learning rates?",
    "initialization": "Does it care less about initialization?",
    "depth": "Can it be deeper?",
    "batch_size": "How small may a batch be?",
    "sequence": "Why not in recurrent networks?",
    "sync": "What does sharing statistics over processes bring?",
    "company": "Which norms need a batch?",
    "family": "Which norm when?",
    "why": "Does it work because inputs stop shifting?",
}
NAMES = tuple(QUESTIONS)
# Those with a statement of the lesson; `family` and `why` go beyond it.
DEFAULT = tuple(name for name in NAMES if name not in ("family", "why"))


def starting_with(word: str) -> list[str]:
    """The experiments that a half-typed word could mean."""
    return [name for name in NAMES if name.startswith(word)]
