"""Targets of kind http."""
