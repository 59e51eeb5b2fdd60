"""What a target can reach: ping and ports. Each runs at the target's vantage."""

import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import anyio
from pydantic import BeforeValidator, Field

from systemmanager.errors import (
    CommandFailed,
    CommandMissing,
    DeadlineExceeded,
    Denied,
    InvalidArguments,
    TargetError,
    Unreachable,
    UnreadableOutput,
    Unsupported,
)
from systemmanager.operation import Risk, operation
from systemmanager.params import Hostname, NotBoolean, TcpPort
from systemmanager.ports import Network, Result

KNOCK = 2.0
"""Seconds that one TCP probe may take where it stands in for a ping."""

KNOCK_PORTS = (443, 80, 22)
"""22 comes last: sshd locks out who connects and says nothing."""

AT_ONCE = 16
"""Ports tried at a time."""

Milliseconds = Annotated[float, Field(description="Milliseconds.")]


# --- ping -------------------------------------------------------------------------------------------------------------


class Ping(Result):
    host: str
    reachable: bool
    method: Literal["icmp", "icmp-unprivileged", "tcp"]
    sent: int
    received: int
    loss_percent: float
    min_ms: float | None = None
    avg_ms: float | None = None
    max_ms: float | None = None
    port: int | None = Field(default=None, description="The port that tcp knocked at.")
    note: str | None = None


@operation(
    scope="network:diag",
    capability="network:read",
    risk=Risk.MODERATE,
    timeout=60,
    roles={"host": "host"},
    open_world=True,
)
async def ping_host(
    network: Network, host: Hostname, count: Annotated[int, Field(ge=1, le=20), NotBoolean] = 4
) -> Ping:
    """Ping a host from the target: loss and latency. Falls back to TCP where ICMP is not possible, and says so."""
    address = (await network.addresses(host))[0]
    try:
        return await _by_program(network, host, address, count)
    except (CommandMissing, CommandFailed, UnreadableOutput) as error:
        why = error.message
    try:
        return _ping(host, "icmp-unprivileged", await network.echo(address, count), note=why)
    except (Unsupported, Unreachable) as error:
        return await by_tcp(network, host, count, f"{why}; {error.message}")


async def _by_program(network: Network, host: str, address: str, count: int) -> Ping:
    output = await network.run("ping", "-n", "-c", str(count), "-W", "2", "--", address, check=False)
    if (
        re.search(r"unreachable|No route to host|Invalid argument", output.stderr)
        and "transmitted" not in output.stdout
    ):
        return _ping(host, "icmp", [None] * count, note=output.stderr.strip().splitlines()[-1][:200])
    if "transmitted" not in output.stdout:
        said = (output.stderr.strip() or output.stdout.strip()).splitlines()
        raise CommandFailed(f"ping does not work there ({said[-1][:200] if said else f'status {output.status}'})")
    return parse_ping(host, output.stdout)


def parse_ping(host: str, text: str) -> Ping:
    """The summary of iputils', busybox's and inetutils' ping."""
    counts = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", text)
    if counts is None:
        raise UnreadableOutput("ping printed no summary that is known here")
    times = re.search(r"min/avg/max(?:/[a-z]+)? = ([\d.]+)/([\d.]+)/([\d.]+)", text)
    sent, received = int(counts[1]), min(int(counts[2]), int(counts[1]))
    low, mean, high = map(float, times.groups()) if times else (None, None, None)
    return Ping(
        host=host,
        reachable=received > 0,
        method="icmp",
        sent=sent,
        received=received,
        loss_percent=_loss(sent, received),
        min_ms=low,
        avg_ms=mean,
        max_ms=high,
        note=None if received else _reason(text),
    )


def _reason(text: str) -> str | None:
    """What a router said about a lost probe, such as `Destination Host Unreachable`."""
    said = re.search(r"(Destination .{1,60}|Time to live exceeded|Packet filtered)$", text, re.M)
    return said[1] if said else None


def _loss(sent: int, received: int) -> float:
    return round(100 * (sent - received) / sent, 1) if sent else 100.0


def _ping(
    host: str, method: Literal["icmp", "icmp-unprivileged", "tcp"], times: Sequence[float | None], **more: Any
) -> Ping:
    came = [one for one in times if one is not None]
    return Ping(
        host=host,
        reachable=bool(came),
        method=method,
        sent=len(times),
        received=len(came),
        loss_percent=_loss(len(times), len(came)),
        min_ms=round(min(came), 3) if came else None,
        avg_ms=round(sum(came) / len(came), 3) if came else None,
        max_ms=round(max(came), 3) if came else None,
        **more,
    )


async def by_tcp(network: Network, host: str, count: int, why: str) -> Ping:
    """Connects in place of echoes: an answer and a refusal both show that the host is there.

    Ports that the target may not reach are left out; that none is left is `Denied`.
    """
    tried: list[str] = []
    for port in KNOCK_PORTS:
        try:
            first = await knock(network, host, port, KNOCK)
        except Unsupported as error:
            raise Unsupported(f"{why}; {error.message}", hint=error.hint) from error
        except Denied as error:
            if error.code != "port_not_allowed" or (port == KNOCK_PORTS[-1] and not tried):
                raise
            continue
        if first.state in ("open", "closed"):
            break
        tried.append(str(port))
    else:
        return _ping(host, "tcp", [None] * count, note=f"{why}; no answer on TCP {', '.join(tried)}")
    probes = [first, *[await knock(network, host, port, KNOCK) for _ in range(count - 1)]]
    times = [probe.ms if probe.state in ("open", "closed") else None for probe in probes]
    return _ping(host, "tcp", times, port=port, note=why)


# --- ports ------------------------------------------------------------------------------------------------------------


class PortState(Result):
    port: int
    state: Literal["open", "closed", "filtered", "unreachable"]
    ms: float
    reason: str | None = None


class Ports(Result):
    host: str
    open: int = Field(description="How many are open.")
    ports: list[PortState]


def _split(value: Any) -> Any:
    """`22,80,443` and `8000-8003` as lists, one number too."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    found: list[Any] = []
    for part in str(value).replace(" ", "").split(","):
        span = re.fullmatch(r"(\d{1,5})-(\d{1,5})", part)
        if span and 0 <= int(span[2]) - int(span[1]) < 100:
            found += range(int(span[1]), int(span[2]) + 1)
        else:
            found.append(part)
    return found


PortList = Annotated[list[TcpPort], BeforeValidator(_split), Field(min_length=1, max_length=100)]


@operation(
    scope="network:diag",
    capability="network:read",
    risk=Risk.MODERATE,
    timeout=120,
    roles={"host": "host", "port": "port ports"},
    open_world=True,
)
async def test_port_connectivity(
    network: Network,
    host: Hostname,
    port: TcpPort | None = None,
    ports: PortList | None = None,
    timeout: Annotated[float, Field(gt=0, le=15, description="Seconds per port.")] = 5,
) -> Ports:
    """Whether TCP ports of a host are open, closed or filtered, seen from the target. Give `port` or `ports`."""
    if (port is None) == (ports is None):
        raise InvalidArguments("test_port_connectivity needs either port or ports", hint="For example ports=[22, 443].")
    asked = list(dict.fromkeys(ports if ports is not None else [port] if port is not None else []))
    states: dict[int, PortState] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(number: int) -> None:
        async with limiter:
            states[number] = await knock(network, host, number, timeout)

    try:
        async with anyio.create_task_group() as group:
            for number in asked:
                group.start_soon(one, number)
    except* TargetError as failures:
        raise failures.exceptions[0] from None
    found = [states[number] for number in asked]
    return Ports(host=host, open=sum(state.state == "open" for state in found), ports=found)


async def knock(network: Network, host: str, port: int, timeout: float) -> PortState:
    """Connect and hang up. What answers, refuses or stays silent is a state; an unknown name is an error."""
    started = time.perf_counter()

    def state(name: Literal["open", "closed", "filtered", "unreachable"], reason: str | None = None) -> PortState:
        return PortState(port=port, state=name, ms=round((time.perf_counter() - started) * 1000, 1), reason=reason)

    try:
        stream = await network.connect(host, port, timeout)
    except DeadlineExceeded:
        return state("filtered", f"no answer within {timeout:g} s")
    except Unreachable as error:
        reason = (error.details or {}).get("reason")
        if reason == "refused":
            return state("closed", "refused")
        return state("filtered" if reason == "timeout" else "unreachable", error.message)
    reached = state("open")
    await stream.aclose()
    return reached
