"""Containers: list, start, stop, restart, logs, update."""
