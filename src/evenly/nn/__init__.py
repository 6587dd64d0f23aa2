"""Layers and functions: the door where arguments are checked, and the path a call takes."""
