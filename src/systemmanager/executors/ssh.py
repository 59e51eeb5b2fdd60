"""Targets of kind ssh."""
