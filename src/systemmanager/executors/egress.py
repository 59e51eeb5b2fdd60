"""What one call may reach: each name is resolved once, every address that it has is judged, and only judged addresses
are dialled.

So it does not help to answer another address the second time (DNS rebinding), to mix a good address with a bad one, or
to hide one behind a CNAME: what was judged is what is connected to.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from systemmanager.addresses import Address, parse, port_matches, refused, unmapped, why_refused
from systemmanager.errors import Denied, NameNotResolved, TargetError, Unreachable, Unsupported
from systemmanager.request import Permit

HEAD_START = 0.25
"""Seconds that one address of a host gets before the next one is tried beside it (RFC 8305)."""

MOST_ADDRESSES = 16
"""Addresses of one name that are dialled; all are judged."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
T = TypeVar("T")


def _nobodys(_: Address) -> bool:
    return False


class Egress:
    """The way out of one call. `resolve` asks where the connection will start; `own` knows the machine's addresses."""

    def __init__(
        self,
        permit: Permit,
        resolve: Resolve,
        *,
        own: Callable[[Address], bool] = _nobodys,
        hosts: tuple[str, ...] | None = None,
    ) -> None:
        self._permit, self._resolve, self._own = permit, resolve, own
        self._hosts = permit.target.constraints.hosts if hosts is None else hosts
        self._known: dict[str, tuple[str, ...]] = {}
        self._lock = asyncio.Lock()

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Where a host is, in the order to try. Raises `NameNotResolved`, and `Denied` if any of it is not allowed."""
        async with self._lock:
            if host not in self._known:
                self._known[host] = await self._judged(host)
            return self._known[host]

    async def _judged(self, host: str) -> tuple[str, ...]:
        literal = parse(host)
        found = [host.strip("[]") if _is_usual(host) else str(literal)] if literal else await self._resolve(host)
        if not found:
            raise NameNotResolved(f"{host!r} has no address")
        for text in found:
            self._judge(host, None if literal else host, text)
        return tuple(dict.fromkeys(found))[:MOST_ADDRESSES]

    def _judge(self, host: str, name: str | None, text: str) -> None:
        address = parse(text)
        if address is None:
            raise NameNotResolved(f"{host!r} leads to {text[:100]!r}, which is no address")
        permit = self._permit
        kind = refused(address, name, self._hosts, permit.neighbours, own=self._own(unmapped(address)))
        if kind is not None:
            reason, fix = why_refused(host, address, kind, self._hosts, permit.target.id)
            raise Denied(reason, code="host_not_allowed", hint=f"It would need {fix}.")

    def check(self, port: int) -> None:
        """Raises `Denied` for a port that is not among the target's."""
        ports, id = self._permit.target.constraints.ports, self._permit.target.id
        if ports is not None and not port_matches(port, ports):
            reason, fix = f"port {port} is not in constraints.ports of {id!r}", f"{port} in constraints.ports of {id!r}"
            raise Denied(reason, code="port_not_allowed", hint=f"It would need {fix}.")


def _is_usual(host: str) -> bool:
    """Whether the address is written as every reader reads it; a zone may stand behind it."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


async def first_of(
    candidates: Sequence[str],
    dial: Callable[[str], Awaitable[T]],
    close: Callable[[T], Awaitable[None]],
) -> T:
    """The connection that stands first, each next address tried a little later. Raises the most telling failure."""
    failures: list[TargetError] = []
    won: list[T] = []

    async def attempt(address: str, ended: anyio.Event) -> None:
        try:
            connection = await dial(address)
        except TargetError as error:
            failures.append(error)
        else:
            won.append(connection)
            group.cancel_scope.cancel()
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as group:
            for address in candidates:
                ended = anyio.Event()
                group.start_soon(attempt, address, ended)
                with anyio.move_on_after(HEAD_START):
                    await ended.wait()
    except asyncio.CancelledError:
        for connection in won:
            await close(connection)
        raise
    for late in won[1:]:
        await close(late)
    if not (won or failures):  # the attempts were cancelled by something below us, as on a machine that can't keep up
        raise Unreachable("the connection was given up before it stood", details={"reason": "timeout"})
    if not won:
        raise min(failures, key=_telling)
    return won[0]


_TELLING = {"refused": 1, "timeout": 2, "failed": 3, "no_route": 4}


def _telling(error: TargetError) -> int:
    """That a host refused says more than that one of its addresses has no route."""
    if isinstance(error, Unsupported):
        return 0
    reason = (error.details or {}).get("reason")
    return _TELLING.get(str(reason), 3) if isinstance(error, Unreachable) or reason else 5
