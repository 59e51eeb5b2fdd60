"""What a connection may cost: bounds that neither uvicorn nor its HTTP parser has.

Slow clients, endless heads, readers that do not read, and floods of connections. The state of a connection is a few
numbers, looked at once a second: a call pays next to nothing for it.
"""

import asyncio
import ipaddress
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MOST_HEAD = 32 * 1024
"""Bytes of a request's line and headers; a bearer token is the longest of them."""

MOST_HEADERS = 64
MOST_CONNECTIONS = 480
SWEEP_EVERY = 1.0

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class Limits:
    """`head_within`: seconds for a request's line and headers, counted from the connection or from their first byte.
    `taken_within`: seconds in which a client must have read what waits for it. `per_address` does not hold for
    loopback, where a proxy brings everybody: those may use three quarters of `most`.
    """

    head_within: float = 10.0
    taken_within: float = 30.0
    most: int = MOST_CONNECTIONS
    per_address: int = 64

    def of(self, address: str) -> int:
        return self.most * 3 // 4 if _is_loopback(address) else min(self.per_address, self.most)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True  # a unix socket's peer has none


@dataclass
class Connections:
    """The open connections of one server."""

    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    open: dict["Connection", None] = field(default_factory=dict)
    refused: int = 0

    def __post_init__(self) -> None:
        self._of: Counter[str] = Counter()

    @property
    def addresses(self) -> int:
        """From how many addresses connections are open."""
        return len(self._of)

    def protocol(self) -> type[HttpToolsProtocol]:
        """What uvicorn makes for each connection."""

        class Ours(Connection):
            bounds = self

        return Ours

    def admit(self, one: "Connection") -> bool:
        """Whether there is room. When all is taken, the connection that has waited for longest without ever having
        asked for anything gives way, else the oldest that asks for nothing now."""
        self.open[one] = None
        self._of[one.address] += 1
        if self._of[one.address] > self.limits.of(one.address):
            self.refused += 1
            return False
        if len(self.open) <= self.limits.most:
            return True
        self.refused += 1
        idle = [other for other in self.open if other.idle and other is not one]
        gives_way = next((other for other in idle if not other.asked), idle[0] if idle else None)
        if gives_way is None:
            return False
        gives_way.drop()
        return True

    def forget(self, one: "Connection") -> None:
        if one in self.open:
            del self.open[one]
            self._of[one.address] -= 1
            if not self._of[one.address]:
                del self._of[one.address]

    def sweep(self) -> None:
        """End what takes too long."""
        now = self.clock()
        for one in list(self.open):
            one.check(now)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        told = 0
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            self.sweep()
            if self.refused > told * 2:  # a flood doubles it a few times, and so makes a few lines
                told = self.refused
                log.warning("connections refused", so_far=told, open=len(self.open), addresses=self.addresses)


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds."""

    bounds: Connections

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.asked = False
        self._waiting_since: float | None = self.bounds.clock()
        self._unread_since: float | None = None
        self._in_head, self._head, self._count, self._large = True, 0, 0, False
        if not self.bounds.admit(self):
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self.bounds.forget(self)
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Nothing is asked now."""
        return self.cycle is None or self.cycle.response_complete

    def drop(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += len(data)
            if self._waiting_since is None and self.idle:
                self._waiting_since = self.bounds.clock()
        super().data_received(data)
        if self._in_head and self._head > MOST_HEAD and not self.transport.is_closing():
            self._large = True
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > MOST_HEADERS:
            self._large = True
            raise ValueError("too many headers")  # the parser takes it for a bad request
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MOST_HEAD:
            self._large = True
            raise ValueError("too large a head")
        self.asked, self._in_head, self._waiting_since = True, False, None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head, self._count, self._waiting_since = True, 0, 0, None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self._in_head:  # answered before the whole body came: the rest of it may not come for ever
            self._waiting_since = self.bounds.clock()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self._large:
            self._answer(431, "headers_too_large", f"at most {MOST_HEADERS} headers in {MOST_HEAD} bytes")
        else:
            self._answer(400, "bad_request", "this is not HTTP/1.1")

    def _answer(self, status: int, code: str, message: str) -> None:
        body = f'{{"error":{{"code":"{code}","message":"{message}"}}}}'.encode()
        lines = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + lines + body)
        self.transport.close()

    def check(self, now: float) -> None:
        """End this connection when its client is too slow."""
        limits, waiting = self.bounds.limits, self._waiting_since
        if self.transport.get_write_buffer_size() == 0:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since >= limits.taken_within:
            self.drop()
            return
        if waiting is not None and now - waiting >= limits.head_within and not self.transport.is_closing():
            if self._head:
                self._answer(408, "head_too_slow", f"the headers must come in within {limits.head_within:g} s")
            else:
                self.transport.close()


def room_for_connections() -> int:
    """How many connections the process can take, when a quarter of its file descriptors is for them.

    The soft limit of descriptors is raised as far as it may be: connections to targets need them too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MOST_CONNECTIONS, soft // 4))
