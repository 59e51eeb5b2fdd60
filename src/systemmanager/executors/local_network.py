"""Connections from the gateway's own machine."""

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import ByteStream

from systemmanager.addresses import Address
from systemmanager.errors import DeadlineExceeded, NameNotResolved, Unreachable, Unsupported
from systemmanager.executors.egress import Egress, Resolve
from systemmanager.executors.local import LocalShell
from systemmanager.executors.vantage import DNS_PORT, Vantage, resolvers, timed_out
from systemmanager.request import Permit

RESOLV_CONF = Path("/etc/resolv.conf")
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


class LocalNetwork(LocalShell, Vantage):
    def __init__(
        self, permit: Permit, resolv_conf: Path = RESOLV_CONF, dns_port: int = DNS_PORT, resolve: Resolve | None = None
    ) -> None:
        super().__init__(permit)
        self.egress = Egress(permit, resolve or resolved, own=is_own)
        self._resolv_conf = resolv_conf
        self.dns_port = dns_port

    async def dial(self, address: str, port: int, host: str) -> ByteStream:
        try:
            return await anyio.connect_tcp(address, port)
        except OSError as error:
            raise _unreachable(host, port, error.__cause__ or error) from error

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

        address = (await self.egress.addresses(host))[0]
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


async def resolved(host: str) -> list[str]:
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


def is_own(address: Address) -> bool:
    """Whether an address is this machine's. Connecting a UDP socket sends nothing, but chooses where it would start."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return bool(probe.getsockname()[0] == str(address))
    except OSError:
        return False


def _unreachable(host: str, port: int, failure: BaseException) -> Unreachable | DeadlineExceeded:
    number = getattr(failure, "errno", None)
    if number == errno.ECONNREFUSED:
        return Unreachable(
            f"{host} refused the connection to port {port}",
            hint="Nothing listens there, or a firewall rejects it.",
            details={"reason": "refused"},
        )
    if number == errno.ETIMEDOUT:
        return timed_out(host, port)
    if number in _NO_ROUTE:
        return Unreachable(f"there is no route to {host}", details={"reason": "no_route"})
    return Unreachable(f"{host} can't be reached on port {port}: {failure}", details={"reason": "failed"})


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
