"""Fold: norms with given statistics taken into the layers beside them, each fold proved by numbers."""
