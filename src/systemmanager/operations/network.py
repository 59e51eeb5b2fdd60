"""How a machine is connected: interfaces, counters, open connections."""

from collections import Counter

from pydantic import Field

from systemmanager.operation import Risk, operation
from systemmanager.params import Limit
from systemmanager.ports import Connection, Facts, Interface, IoCounters, Page, Result

_EITHER = ("system:read", "network:read")
_ESTABLISHED = "established"


class NetworkStatus(Page):
    interfaces: list[Interface] = Field(description="Those that are up first.")


@operation(scope=_EITHER, capability=_EITHER, risk=Risk.LOW, timeout=15)
async def get_network_status(facts: Facts) -> NetworkStatus:
    """Network interfaces of a machine: addresses, up or down, MTU, speed."""
    found = await facts.interfaces()
    ranked = sorted(found, key=lambda one: (not one.up, not one.addresses, one.name == "lo", one.name))
    return NetworkStatus(interfaces=ranked, total=len(found))


class Traffic(Result):
    bytes_sent: int
    bytes_received: int


class NetworkCounters(Page):
    all: Traffic = Field(description="Sum without loopback.")
    interfaces: list[IoCounters] = Field(description="Since boot; busiest first.")


@operation(scope=_EITHER, capability=_EITHER, risk=Risk.LOW, timeout=15)
async def get_network_io_counters(facts: Facts) -> NetworkCounters:
    """Bytes, packets, errors and drops of each network interface since boot."""
    found = await facts.counters()
    ranked = sorted(found, key=lambda one: (-(one.bytes_sent + one.bytes_received), one.name))
    outside = [one for one in found if one.name != "lo"]
    traffic = Traffic(
        bytes_sent=sum(one.bytes_sent for one in outside), bytes_received=sum(one.bytes_received for one in outside)
    )
    return NetworkCounters(all=traffic, interfaces=ranked, total=len(found))


class Connections(Page):
    states: dict[str, int] = Field(description="Sockets per state.")
    connections: list[Connection] = Field(description="Listening first, then established.")


@operation(scope="network:read", capability="network:read", risk=Risk.LOW, timeout=15)
async def get_active_connections(facts: Facts, limit: Limit = 20) -> Connections:
    """Open TCP and UDP sockets with their processes: what listens, and who is connected."""
    found = await facts.connections()
    states = Counter(one.state or "udp" for one in found)
    shown = sorted(found, key=_usefulness)[:limit]
    return Connections(
        states=dict(states.most_common()), connections=shown, total=len(found), truncated=len(found) > limit
    )


def _usefulness(one: Connection) -> tuple[int, bool, int, str, str]:
    """Services first, those that others can reach before those on loopback; then who talks to whom."""
    rank = 0 if one.state == "listen" else 1 if one.state == _ESTABLISHED else 2 if one.remote is None else 3
    host, _, port = one.local.rpartition(":")
    return rank, host.strip("[]").startswith(("127.", "::1")), int(port or 0), one.local, one.remote or ""
