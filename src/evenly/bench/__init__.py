"""The benchmark: refuses to print a time for a wrong result."""
