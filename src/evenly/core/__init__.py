"""The one idea: which elements share one mean and one variance, and how moments merge."""
