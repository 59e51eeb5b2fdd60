import ipaddress
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds hand out credentials. Nobody pings them by accident: they need to stand in constraints.hosts.
_METADATA = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32",
            "192.0.0.192/32", "168.63.129.16/32",
        ),
    )
)  # fmt: skip
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "metadata.azure.internal"}
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?#][^\\]*)?", re.IGNORECASE)


def _address(host: str) -> Address | None:
    """The address that a host is, however it is written: resolvers read 2130706433, 0x7f.1 and 127.1 as 127.0.0.1."""
    try:
        address = ipaddress.ip_address(host.strip("[]").split("%")[0])
    except ValueError:
        return _numeric(host.rstrip("."))
    return getattr(address, "ipv4_mapped", None) or address


def _numeric(host: str) -> Address | None:
    parts = host.split(".")
    if len(parts) > 4 or not all(re.fullmatch(r"0[xX][0-9a-fA-F]{0,16}|[0-9]{1,20}", part) for part in parts):
        return None
    numbers = [_part(part) for part in parts]
    *first, last = numbers
    if any(number > 255 for number in first) or last >= 256 ** (5 - len(parts)):
        return None
    return ipaddress.IPv4Address(sum(number << (24 - 8 * index) for index, number in enumerate(first)) + last)


def _part(part: str) -> int:
    if part[:2] in ("0x", "0X"):
        return int(part[2:] or "0", 16)
    return int(part, 8) if part.startswith("0") and re.fullmatch("[0-7]+", part) else int(part)


def _embedded(address: Address) -> Iterable[Address]:
    """An address and the IPv4 addresses that gateways would make of it."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield address.teredo[1]
        if address in _NAT64 or address in _COMPATIBLE:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def is_metadata(host: str) -> bool:
    """Whether a host is a link-local address or a cloud's metadata service, in any spelling."""
    address = _address(host)
    if address is None:
        return host.rstrip(".").lower() in _METADATA_NAMES
    return any(one in network for one in _embedded(address) for network in _METADATA)


def host_matches(host: str, patterns: Iterable[str]) -> bool:
    """Whether a host name or address is named by an exact name, a glob, an address or a CIDR block.

    Globs of digits (`10.0.*`) are for addresses and name no host, so that `10.evil.example` is not among them.
    """
    address, name = _address(host), host.rstrip(".").lower()
    return any(_host_matches(name, address, pattern.rstrip(".").lower()) for pattern in patterns)


def _host_matches(name: str, address: Address | None, pattern: str) -> bool:
    if "/" not in pattern and (only := _address(pattern)) is not None:
        return address == only
    try:
        network = ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        if pattern == "*":
            return True
        if re.fullmatch(r"[0-9.*?]+", pattern):
            return address is not None and fnmatchcase(str(address), pattern)
        return address is None and fnmatchcase(name, pattern)
    return address is not None and address in network


def port_matches(port: int, patterns: Iterable[int | str]) -> bool:
    for pattern in patterns:
        first, _, last = str(pattern).partition("-")
        if int(first) <= port <= int(last or first):
            return True
    return False


def _named(request: Request) -> tuple[str | None, list[int]]:
    """The host and the ports that the arguments name, by the operation's roles; "" for a URL that can't be judged."""
    roles, arguments = request.operation.roles, request.arguments
    if (url := arguments.get(roles.get("url", ""))) is not None:
        if not _URL.fullmatch(str(url)):
            return "", []
        parts = urlsplit(str(url))
        return parts.hostname, [_url_port(str(url), parts.scheme)]
    ports: list[int] = []
    for parameter in roles.get("port", "").split():
        value: Any = arguments.get(parameter)
        ports += value if isinstance(value, list | tuple) else [] if value is None else [value]
    return arguments.get(roles.get("host", "")), ports


def _url_port(url: str, scheme: str) -> int:
    match = re.match(r"[^/]+//(?:\[[^\]]*\]|[^:/?#]*):([0-9]+)", url)
    return int(match[1]) if match else 443 if scheme == "https" else 80


def hosts(request: Request) -> Verdict:
    """What a diagnostic reaches is in the target's `hosts` and `ports`; metadata services need their own entry."""
    host, ports = _named(request)
    limits, id = request.target.constraints, request.target.id
    if host is None:
        return allow("hosts", "names no host")
    if not host:
        return deny(
            "hosts", "the URL is not plain enough to be judged", "host_not_allowed", "http(s)://host[:port]/path"
        )
    wanted, reasons = [], []
    if is_metadata(host):
        if not host_matches(host, (pattern for pattern in limits.hosts or () if pattern != "*")):
            reasons.append((f"{host} is a link-local or metadata address", "host_not_allowed"))
            wanted.append(f"{host} in constraints.hosts of {id!r}")
    elif limits.hosts is not None and not host_matches(host, limits.hosts):
        reasons.append((f"{host} is not in constraints.hosts of {id!r}", "host_not_allowed"))
        wanted.append(f"{host} in constraints.hosts of {id!r}")
    outside = [port for port in ports if limits.ports is not None and not port_matches(port, limits.ports)]
    if outside:
        shown = ", ".join(map(str, outside[:10]))
        reasons.append((f"port {shown} is not in constraints.ports of {id!r}", "port_not_allowed"))
        wanted.append(f"{shown} in constraints.ports of {id!r}")
    if reasons:
        return deny("hosts", "; ".join(reason for reason, _ in reasons), reasons[0][1], " and ".join(wanted))
    return allow("hosts", f"{host} may be reached from {id!r}")
