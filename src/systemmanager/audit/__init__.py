"""Proof of what was done: one JSON line per Record, the intent before the effect and the outcome after it."""
