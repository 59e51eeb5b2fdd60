"""Which files are the gateway's own, from its settings and its targets."""

import os
from collections.abc import Iterator
from pathlib import Path

from systemmanager.registry import Registry
from systemmanager.settings import Settings, State
from systemmanager.target import DockerTarget, SshTarget


def of_gateway(settings: Settings, state: State) -> Iterator[Path]:
    """The state folder, every file that a setting names, and the credentials that systemd hands over."""
    yield from (state.folder, state.audit_log)
    yield from (value for name in type(settings).model_fields if isinstance(value := getattr(settings, name), Path))
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        yield Path(folder)


def of_targets(registry: Registry) -> Iterator[Path]:
    """Private keys that targets are reached with."""
    for target in registry.targets.values():
        if isinstance(target, SshTarget) and (key := target.connection.key_path) and _is_path(key):
            yield Path(key)
        if isinstance(target, DockerTarget) and (folder := target.connection.cert_path):
            yield Path(folder)


def _is_path(key: str) -> bool:
    return not key.lstrip().startswith("-----BEGIN") and "${" not in key
