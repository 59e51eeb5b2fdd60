"""Connections from the gateway's own machine."""

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import ByteStream, SocketStream

from systemmanager.errors import DeadlineExceeded, NameNotResolved, Unreachable, Unsupported
from systemmanager.executors.local import LocalShell
from systemmanager.executors.vantage import DNS_PORT, Vantage, resolvers, timed_out
from systemmanager.request import Permit

HEAD_START = 0.25
"""Seconds that one address of a host gets before the next one is tried beside it (RFC 8305)."""

RESOLV_CONF = Path("/etc/resolv.conf")
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


class LocalNetwork(LocalShell, Vantage):
    def __init__(self, permit: Permit, resolv_conf: Path = RESOLV_CONF, dns_port: int = DNS_PORT) -> None:
        super().__init__(permit)
        self._resolv_conf = resolv_conf
        self.dns_port = dns_port

    async def connect(self, host: str, port: int, timeout: float) -> ByteStream:
        try:
            with anyio.fail_after(timeout):
                return await _first_of(await addresses(host), host, port)
        except TimeoutError as error:
            raise timed_out(host, port, timeout) from error

    async def nameservers(self) -> Sequence[str]:
        try:
            text = await anyio.Path(self._resolv_conf).read_text(errors="replace")
        except OSError:
            text = ""
        return resolvers(text)

    async def ask(self, server: str, query: bytes, timeout: float) -> bytes:
        """UDP first, as every home router expects; TCP for what is cut, lost or refused."""
        with suppress(TimeoutError, OSError):
            with anyio.fail_after(timeout / 2):
                answer = await _datagram(server, self.dns_port, query)
            if not answer[2] & 0x02:
                return answer
        return await super().ask(server, query, timeout / 2)

    async def echo(self, host: str, count: int) -> Sequence[float | None]:
        import icmplib  # type: ignore[import-untyped]  # ships no types

        address = (await addresses(host))[0]
        try:
            seen = await icmplib.async_ping(address, count=count, interval=0.5, timeout=1, privileged=False)
        except icmplib.SocketPermissionError as error:
            raise Unsupported(
                "the kernel permits no unprivileged ICMP here",
                hint="Install ping, or widen net.ipv4.ping_group_range.",
            ) from error
        except icmplib.ICMPSocketError as error:
            raise Unreachable(f"ICMP to {host} can't be sent: {error}") from error
        return [*seen.rtts, *[None] * (count - len(seen.rtts))]


async def addresses(host: str) -> list[str]:
    """Addresses of a host as this machine resolves it, families taking turns. Raises `NameNotResolved`."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a name"
        raise NameNotResolved(f"{host!r} can't be resolved: {reason}") from error
    first = [str(entry[4][0]) for entry in found if entry[0] == found[0][0]]
    other = [str(entry[4][0]) for entry in found if entry[0] != found[0][0]]
    turns = [address for pair in zip(first, other, strict=False) for address in pair]
    return list(dict.fromkeys([*turns, *first, *other]))


async def _first_of(candidates: Sequence[str], host: str, port: int) -> ByteStream:
    """A connection to the address that answers first, each next one tried a little later."""
    failures: list[BaseException] = []
    won: list[SocketStream] = []

    async def attempt(address: str, ended: anyio.Event) -> None:
        try:
            stream = await anyio.connect_tcp(address, port)
        except OSError as error:
            failures.append(error.__cause__ or error)
        else:
            won.append(stream)
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
        for stream in won:
            await anyio.aclose_forcefully(stream)
        raise
    for late in won[1:]:
        await anyio.aclose_forcefully(late)
    if not won:
        raise _unreachable(host, port, failures)
    return won[0]


def _unreachable(host: str, port: int, failures: Sequence[BaseException]) -> Unreachable | DeadlineExceeded:
    numbers = {getattr(failure, "errno", None) for failure in failures}
    if errno.ECONNREFUSED in numbers:
        return Unreachable(
            f"{host} refused the connection to port {port}",
            hint="Nothing listens there, or a firewall rejects it.",
            details={"reason": "refused"},
        )
    if errno.ETIMEDOUT in numbers:
        return timed_out(host, port)
    if numbers & set(_NO_ROUTE):
        return Unreachable(f"there is no route to {host}", details={"reason": "no_route"})
    said = next((str(failure) for failure in failures), "no address")
    return Unreachable(f"{host} can't be reached on port {port}: {said}", details={"reason": "failed"})


async def _datagram(server: str, port: int, query: bytes) -> bytes:
    """One question and its answer over UDP; datagrams that carry another id are dropped."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as udp:
        udp.connect((server, port))  # so that only this server's answers come in, and its refusal too
        await loop.sock_sendall(udp, query)
        while True:
            answer = await loop.sock_recv(udp, 65535)
            if len(answer) >= 12 and answer[:2] == query[:2]:
                return answer
