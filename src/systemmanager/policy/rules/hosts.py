import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

# Where clouds hand out credentials. Nobody pings them by accident: they need to stand in constraints.hosts.
_METADATA = tuple(map(ipaddress.ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128")))
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def host_matches(host: str, patterns: Iterable[str]) -> bool:
    """Whether a host name or address is named by an exact name, a glob, an address or a CIDR block."""
    address, name = _address(host), host.rstrip(".").lower()
    for pattern in patterns:
        try:
            network = ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            if address is None and fnmatchcase(name, pattern.lower()):
                return True
        else:
            if address is not None and address in network:
                return True
    return False


def port_matches(port: int, patterns: Iterable[int | str]) -> bool:
    for pattern in patterns:
        first, _, last = str(pattern).partition("-")
        if int(first) <= port <= int(last or first):
            return True
    return False


def _named(request: Request) -> tuple[str | None, list[int]]:
    """The host and the ports that the arguments name, by the operation's roles."""
    roles, arguments = request.operation.roles, request.arguments
    if url := arguments.get(roles.get("url", "")):
        parts = urlsplit(str(url))
        return parts.hostname or "", [parts.port or (443 if parts.scheme == "https" else 80)]
    ports: list[int] = []
    for parameter in roles.get("port", "").split():
        value: Any = arguments.get(parameter)
        ports += value if isinstance(value, list | tuple) else [] if value is None else [value]
    return arguments.get(roles.get("host", "")), ports


def hosts(request: Request) -> Verdict:
    """What a diagnostic reaches is in the target's `hosts` and `ports`; without a list, all but metadata services."""
    host, ports = _named(request)
    if host is None:
        return allow("hosts", "names no host")
    limits, id = request.target.constraints, request.target.id
    if limits.hosts is not None and not host_matches(host, limits.hosts):
        return deny(
            "hosts",
            f"{host} is not in constraints.hosts of {id!r}",
            "host_not_allowed",
            f"{host} in constraints.hosts of {id!r}",
        )
    if limits.hosts is None and (
        host.rstrip(".").lower() in _METADATA_NAMES or host_matches(host, map(str, _METADATA))
    ):
        return deny(
            "hosts",
            f"{host} is a link-local or metadata address",
            "host_not_allowed",
            f"{host} in constraints.hosts of {id!r}",
        )
    if limits.ports is not None:
        for port in ports:
            if not port_matches(port, limits.ports):
                return deny(
                    "hosts",
                    f"port {port} is not in constraints.ports of {id!r}",
                    "port_not_allowed",
                    f"{port} in constraints.ports of {id!r}",
                )
    return allow("hosts", f"{host} may be reached from {id!r}")
