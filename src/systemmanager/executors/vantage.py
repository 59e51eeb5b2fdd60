"""What a target's vantage gives as soon as it can open a TCP connection; for local and SSH targets alike."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import anyio
from anyio.abc import ByteStream

from systemmanager.errors import DeadlineExceeded, NameNotResolved, Unreachable, Unsupported
from systemmanager.executors.egress import Egress, first_of
from systemmanager.ports import HttpAnswer
from systemmanager.request import Permit

DNS_PORT = 53


class Vantage(ABC):
    """All of the Network port that follows from `dial`. A subclass adds that, `nameservers` and its shell.

    `egress` judges what the caller asks for; name servers are the target's own choice and are not judged.
    """

    dns_port = DNS_PORT
    egress: Egress

    def __init__(self, permit: Permit) -> None:
        self._permit = permit

    @abstractmethod
    async def dial(self, address: str, port: int, host: str) -> ByteStream:
        """Connect to one address; `host` is what it is called in errors. Raises `TargetError`."""

    @abstractmethod
    async def nameservers(self) -> Sequence[str]: ...

    async def addresses(self, host: str) -> Sequence[str]:
        return await self.egress.addresses(host)

    async def connect(self, host: str, port: int, timeout: float) -> ByteStream:
        self.egress.check(port)
        found: Sequence[str] = ()
        try:
            with anyio.fail_after(timeout):
                found = await self.egress.addresses(host)
                return await first_of(found, lambda address: self.dial(address, port, host), anyio.aclose_forcefully)
        except TimeoutError as error:
            if not found:
                raise NameNotResolved(f"{host!r} was not resolved within {timeout:g} s") from error
            raise timed_out(host, port, timeout) from error

    async def ask(self, server: str, query: bytes, timeout: float) -> bytes:
        """DNS over TCP, which needs nothing but a connection."""
        try:
            with anyio.fail_after(timeout):
                async with await self.dial(server, self.dns_port, server) as stream:
                    await stream.send(len(query).to_bytes(2, "big") + query)
                    size = int.from_bytes(await _exactly(stream, 2), "big")
                    return await _exactly(stream, size)
        except TimeoutError as error:
            raise timed_out(server, self.dns_port, timeout) from error
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError) as error:
            raise Unreachable(f"the name server {server} closed the connection without an answer") from error

    async def echo(self, host: str, count: int) -> Sequence[float | None]:
        raise Unsupported("ICMP needs the ping program there", hint="Install ping on the target.")

    async def request(self, method: str, url: str, timeout: float) -> HttpAnswer:
        from systemmanager.executors.web import fetch  # httpcore is imported when it is first needed

        limit = self._permit.target.constraints.max_output_bytes
        return await fetch(self.connect, method, url, timeout, limit=limit)


async def _exactly(stream: ByteStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += await stream.receive(size - len(received))
    return bytes(received)


def timed_out(host: str, port: int, timeout: float | None = None) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{host} did not answer on port {port}" + (f" within {timeout:g} s" if timeout else ""),
        hint="It may be down, or a firewall drops the packets.",
        details={"reason": "timeout"},
    )


def resolvers(resolv_conf: str) -> list[str]:
    """The name servers of a resolv.conf; without one it is this machine, as resolv.conf(5) says."""
    lines = (line.split() for line in resolv_conf.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"][:3] or ["127.0.0.1"]
