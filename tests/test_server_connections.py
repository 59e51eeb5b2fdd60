"""Connections over real TCP: slow and greedy clients cost little, and others are served beside them."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from systemmanager.server.connections import MOST_HEAD, MOST_HEADERS, Connections, Limits
from systemmanager.server.http import BoundedBody, listening
from systemmanager.settings import Settings
from tests.support import run

LARGE = 8 * 1024 * 1024


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """A server under test: what its app saw, and its clock."""

    port: int
    connections: Connections
    clock: Clock
    served: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    async def later(self, seconds: float) -> None:
        """Time passes, and the server looks at its connections."""
        self.connections.sweep()
        self.clock.now += seconds
        self.connections.sweep()


@asynccontextmanager
async def site(**limits: Any) -> AsyncIterator[Site]:
    clock = Clock()
    connections = Connections(Limits(**limits), clock)
    here = Site(0, connections, clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        here.served.append(scope["path"])
        if scope["path"] == "/body":
            while (await receive()).get("more_body"):
                pass
        if scope["path"] == "/wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            here.gone.append(scope["path"])
            return
        body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(body), 65536):
            more = start + 65536 < len(body)
            await send({"type": "http.response.body", "body": body[start : start + 65536], "more_body": more})

    settings = Settings.model_validate({"MCP_PORT": 0})
    async with listening(BoundedBody(app), settings, connections=connections) as port:
        here.port = port
        yield here


class Peer:
    """A client that sends what it is told, from any loopback address."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def status(self) -> int | None:
        """The status of the next answer, or None when the connection ends without one."""
        try:
            line = await asyncio.wait_for(self.reader.readline(), 10)
        except ConnectionError:
            return None
        return int(line.split()[1]) if line else None

    def close(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def peers(port: int, count: int = 1, source: str = "127.0.0.1") -> AsyncIterator[list[Peer]]:
    made: list[Peer] = []
    try:
        for _ in range(count):
            made.append(Peer(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))))
        yield made
    finally:
        for one in made:
            one.close()
        await asyncio.sleep(0)


async def until(true: Callable[[], object], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not true():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.002)


ASK = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
SLOW: dict[str, tuple[bytes, int | None]] = {
    "says nothing": (b"", None),
    "half a request line": (b"POST /mc", 408),
    "a header without an end": (b"GET / HTTP/1.1\r\nhost: x\r\nx-drip: " + b"a" * 100, 408),
    "one line short": (ASK[:-2] % b"", 408),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_client_that_does_not_finish_its_head_is_ended(name: str) -> None:
    sent, expected = SLOW[name]

    async def work() -> None:
        async with site(head_within=10) as here, peers(here.port) as (slow,):
            slow.send(sent)
            await until(lambda: here.connections.open, "the connection is there")
            one = next(iter(here.connections.open))
            await until(lambda: one._head == len(sent), "what was sent has come")
            await here.later(9.9)
            assert not here.served and len(here.connections.open) == 1
            await here.later(0.2)
            assert await slow.status() == expected
            await until(lambda: not here.connections.open, "the connection is gone")

    run(work())


def test_a_second_request_on_a_connection_gets_no_more_time_than_the_first() -> None:
    async def work() -> None:
        async with site() as here, peers(here.port) as (slow,):
            slow.send(ASK % b"")
            assert await slow.status() == 200
            slow.send(b"GET / HT")
            one = next(iter(here.connections.open))
            await until(lambda: one._head == 8, "its head has begun")
            await here.later(10.1)
            assert await slow.reader.readuntil(b"ok") and await slow.status() == 408

    run(work())


def test_a_body_that_goes_on_after_the_answer_is_ended() -> None:
    async def work() -> None:
        async with site() as here, peers(here.port) as (slow,):
            slow.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
            assert await slow.status() == 200
            for _ in range(3):
                slow.send(b"1\r\nx\r\n")
                await here.later(5)
            await until(lambda: not here.connections.open, "the connection is gone")

    run(work())


def test_a_call_may_take_longer_than_a_head() -> None:
    async def work() -> None:
        async with site() as here, peers(here.port) as (patient,):
            patient.send(ASK % b"wait")
            await until(lambda: here.served, "it is served")
            await here.later(1000)
            assert len(here.connections.open) == 1 and not here.gone

    run(work())


@pytest.mark.parametrize("path", ["large", "wait"])
def test_a_client_that_goes_away_leaves_nothing(path: str) -> None:
    async def work() -> None:
        async with site() as here:
            async with peers(here.port) as (one,):
                one.send(ASK % path.encode())
                await until(lambda: here.served, "it is served")
            await until(lambda: not here.connections.open, "the connection is gone")
            assert here.connections.addresses == 0
            if path == "wait":
                await until(lambda: here.gone, "the app was told")

    run(work())


def test_a_reader_that_does_not_read_is_ended() -> None:
    async def work() -> None:
        async with site(taken_within=30) as here, peers(here.port) as (greedy,):
            greedy.writer.transport.pause_reading()  # type: ignore[attr-defined]
            greedy.send(ASK % b"large")
            await until(lambda: here.connections.open, "the connection is there")
            one = next(iter(here.connections.open))
            await until(lambda: one.transport.get_write_buffer_size() > 0, "the answer is stuck")
            await here.later(29)
            assert here.connections.open
            await here.later(2)
            await until(lambda: not here.connections.open, "the connection is gone")

    run(work())


HEADS = {
    "one header of all sizes": b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * MOST_HEAD + b"\r\n\r\n",
    "a header without an end": b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (MOST_HEAD + 1),
    "an address without an end": b"GET /" + b"a" * (MOST_HEAD + 1),
    "many headers": b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MOST_HEADERS + 1) + b"\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_large_head_is_refused(name: str) -> None:
    async def work() -> None:
        async with site() as here, peers(here.port) as (one,):
            one.send(HEADS[name])
            assert await one.status() == 431
            assert b'"headers_too_large"' in await one.reader.read()
            assert not here.served

    run(work())


def test_what_is_no_http_is_refused_without_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with site() as here, peers(here.port) as (one,):
            one.send(b"\x16\x03\x01 hello\r\n\r\n")
            assert await one.status() == 400

    run(work())
    assert not caplog.records


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_an_encoded_body_is_refused(encoding: str) -> None:
    async def work() -> None:
        async with site() as here, peers(here.port) as (one,):
            one.send(
                b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-encoding: %s\r\n\r\n{}" % encoding.encode()
            )
            assert await one.status() == 415 and not here.served

    run(work())


def test_one_address_does_not_take_all_connections() -> None:
    async def work() -> None:
        async with (
            site(most=12) as here,
            peers(here.port, 9, "127.0.0.2") as held,
            peers(here.port, 2, "127.0.0.2") as more,
        ):
            for one in more:
                one.send(ASK % b"")
                assert await one.status() is None
            assert here.connections.refused == 2
            async with peers(here.port) as (other,):
                other.send(ASK % b"")
                assert await other.status() == 200
            held[0].send(ASK % b"")
            assert await held[0].status() == 200

    run(work())


def test_limits_hold_for_each_address_but_loopback_where_a_proxy_stands() -> None:
    limits = Limits(most=100, per_address=7)
    assert [limits.of(address) for address in ("192.0.2.1", "2001:db8::1", "127.0.0.1", "::1", "")] == [
        7,
        7,
        75,
        75,
        75,
    ]


def test_when_all_places_are_taken_one_that_never_asked_gives_way() -> None:
    async def work() -> None:
        async with site(most=4) as here:
            async with peers(here.port, 2, "127.0.0.2") as (busy, asked), peers(here.port, 2, "127.0.0.3") as silent:
                busy.send(ASK % b"wait")
                asked.send(ASK % b"")
                assert await asked.status() == 200
                await until(lambda: len(here.served) == 2, "both are served")
                async with peers(here.port, 1) as (new,):
                    new.send(ASK % b"")
                    assert await new.status() == 200
                    assert await silent[0].status() is None
                    assert not here.gone and not silent[1].reader.at_eof() and not asked.reader.at_eof()

    run(work())


def test_a_thousand_connections_that_come_and_go_leave_nothing_open() -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def wave(port: int) -> None:
        async def one(number: int) -> None:
            async with peers(port) as (peer,):
                peer.send((ASK % (b"wait" if number % 3 else b""))[: -(number % 2)] or b"")
                await asyncio.sleep(0)

        await asyncio.gather(*(one(number) for number in range(100)))

    async def work() -> None:
        async with site() as here:
            await wave(here.port)
            await until(lambda: not here.connections.open, "all are gone")
            gc.collect()
            files, tasks = open_files(), len(asyncio.all_tasks())
            for _ in range(10):
                await wave(here.port)
            await until(lambda: not here.connections.open, "all are gone")
            await until(lambda: open_files() <= files, "no file stays open")
            await until(lambda: len(asyncio.all_tasks()) <= tasks, "no task stays")

    run(work())
