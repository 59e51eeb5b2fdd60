import re
from typing import Any
from urllib.parse import urlsplit

from systemmanager.addresses import beside, is_listed, may_ask, parse, port_matches, refused, why_refused
from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?#][^\\]*)?", re.IGNORECASE)


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
    """What a diagnostic reaches is in the target's `hosts` and `ports`. A name is judged again by every address that it
    has, when it is resolved."""
    if (asked := request.arguments.get(request.operation.roles.get("name", ""))) is not None:
        return _asked_about(request, asked)
    host, ports = _named(request)
    limits, id = request.target.constraints, request.target.id
    if host is None:
        return allow("hosts", "names no host")
    if not host:
        return deny(
            "hosts", "the URL is not plain enough to be judged", "host_not_allowed", "http(s)://host[:port]/path"
        )
    wanted, reasons = [], []
    if against := _against(request, host):
        reasons.append((against[0], "host_not_allowed"))
        wanted.append(against[1])
    outside = [port for port in ports if limits.ports is not None and not port_matches(port, limits.ports)]
    if outside:
        shown = ", ".join(map(str, outside[:10]))
        reasons.append((f"port {shown} is not in constraints.ports of {id!r}", "port_not_allowed"))
        wanted.append(f"{shown} in constraints.ports of {id!r}")
    if reasons:
        return deny("hosts", "; ".join(reason for reason, _ in reasons), reasons[0][1], " and ".join(wanted))
    later = "" if parse(host) is not None else ", if every address that it has when it is resolved may be reached"
    return allow("hosts", f"{host} may be reached from {id!r}{later}")


def _against(request: Request, host: str) -> tuple[str, str] | None:
    """Why the host may not be reached, and what would help; None where it may, or its addresses are to decide."""
    limits, id = request.target.constraints.hosts, request.target.id
    if (address := parse(host)) is not None:
        kind = refused(address, None, limits, request.neighbours)
        return None if kind is None else why_refused(host, address, kind, limits, id)
    if may_ask(host, limits):
        return None
    return f"{host} is not in constraints.hosts of {id!r}", f"{host} in constraints.hosts of {id!r}{beside(limits)}"


def _asked_about(request: Request, name: str) -> Verdict:
    """A name that resolvers are asked about; nothing is connected to."""
    limits, id = request.target.constraints.hosts, request.target.id
    if limits is None or is_listed(name, limits):
        return allow("hosts", f"{name} may be asked about from {id!r}")
    reason, fix = f"{name} is not in constraints.hosts of {id!r}", f"{name} in constraints.hosts of {id!r}"
    return deny("hosts", reason, "host_not_allowed", fix)
