"""Targets of kind docker."""
