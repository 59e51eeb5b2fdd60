"""The names of rights: scopes that a principal holds and capabilities that a target offers share one vocabulary.

`SCOPES` are the canonical names, `ALIASES` the other names that are accepted for them, `BUNDLES` the names that expand.
Nothing implies anything else: `container:admin` does not include `container:read`.
"""

from collections.abc import Iterable

from systemmanager.errors import did_you_mean

SCOPES: dict[str, str] = {
    "system:read": "CPU, memory, disks, uptime, processes, units, available updates",
    "system:write": "change system settings",
    "system:admin": "install and update packages",
    "container:read": "containers, images, Docker networks, container logs",
    "container:write": "start, stop and restart containers",
    "container:admin": "pull images, recreate containers",
    "stack:admin": "deploy and remove Compose stacks",
    "network:read": "interfaces, counters and open connections",
    "network:write": "change network settings",
    "network:diag": "ping, traceroute, DNS, port, certificate and HTTP tests",
    "file:read": "list, read and search files below the allowed paths",
    "file:write": "change files below the allowed paths",
    "service:write": "start, stop, restart, enable and disable systemd units",
    "security:read": "security audit: ports, accounts, sshd, setuid files",
    "audit:read": "the gateway's audit log",
}

CHANGING = tuple(sorted(name for name in SCOPES if name.rpartition(":")[2] != "read"))
"""All that are for more than reading."""

ALIASES: dict[str, str] = {
    "container:control": "container:write",
    "docker:read": "container:read",
    "docker:write": "container:write",
    "docker:admin": "container:admin",
    "stack:deploy": "stack:admin",
    "service:control": "service:write",
}

BUNDLES: dict[str, frozenset[str]] = {
    "readonly": frozenset(name for name in SCOPES if name.endswith(":read") and name != "audit:read"),
    "admin": frozenset(SCOPES),
}


def canonical(name: str) -> str:
    """The canonical name of one scope or capability. Raises `ValueError`, naming what is near, when there is none."""
    if name in SCOPES:
        return name
    if name in ALIASES:
        return ALIASES[name]
    raise ValueError(f"unknown scope or capability {name!r}. {did_you_mean(name, [*SCOPES, *ALIASES, *BUNDLES])}")


def expand(names: Iterable[str]) -> frozenset[str]:
    """The canonical names that `names` stand for, bundles expanded. Raises `ValueError` for an unknown one."""
    held: set[str] = set()
    for name in names:
        held |= BUNDLES[name] if name in BUNDLES else {canonical(name)}
    return frozenset(held)
