"""Packages by apt and dnf."""
