"""SystemManager: a control plane gateway between AI assistants and real infrastructure."""

__version__ = "1.0.0"
