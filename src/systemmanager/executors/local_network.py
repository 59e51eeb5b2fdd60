"""Connections from the gateway's own machine."""
