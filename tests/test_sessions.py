"""Sessions of the old era over HTTP: how many there may be, which one gives way, and what is never cut."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastmcp import FastMCP
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from systemmanager.server import sessions as module
from systemmanager.server.sessions import USUAL, SessionLimits, Sessions, bound_sessions
from tests.serving import ACCEPT, INITIALIZE, served, token
from tests.support import fake_gateway, real_gateway, run, target
from tests.test_server_calls import soon, wait_long

__all__ = ["wait_long"]

FEW = SessionLimits(most=4, per_principal=3)


async def until(true: Callable[[], object], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not true():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.002)


class Watched(Sessions):
    """Counts the requests that the server is through with, whatever became of their clients."""

    made: "Watched"
    through = 0

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        Watched.made = self
        try:
            await super()._handle_stateful_request(scope, receive, send)
        finally:
            self.through += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Sessions", Watched)


class Peer:
    """One principal's plain HTTP client."""

    def __init__(self, client: httpx.AsyncClient, subject: str) -> None:
        self._client = client
        self._headers = ACCEPT | {"Authorization": f"Bearer {token(subject=subject)}"}

    async def initialize(self) -> httpx.Response:
        return await self._client.post("/mcp", json=INITIALIZE, headers=self._headers)

    async def open(self) -> str:
        answer = await self.initialize()
        assert answer.status_code == 200, answer.text
        return answer.headers["mcp-session-id"]

    async def post(self, session: str, method: str, **params: Any) -> int:
        message = {"jsonrpc": "2.0", "id": 2, "method": method, "params": params}
        headers = self._headers | {"Mcp-Session-Id": session}
        return (await self._client.post("/mcp", json=message, headers=headers)).status_code

    async def works(self, session: str) -> bool:
        status = await self.post(session, "ping")
        assert status in (200, 404)
        return status == 200

    @asynccontextmanager
    async def listening(self, session: str) -> AsyncIterator[None]:
        headers = self._headers | {"Mcp-Session-Id": session}
        async with self._client.stream("GET", "/mcp", headers=headers) as stream:
            assert stream.status_code == 200
            yield


@asynccontextmanager
async def site(tmp_path: Path, limits: SessionLimits = USUAL) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two principals at a real gateway, with the limits that it has by itself or with others."""
    async with real_gateway(tmp_path, target("local")) as gateway, served(gateway, sessions=limits) as there:
        async with httpx.AsyncClient(base_url=there.origin) as client:
            yield Peer(client, "one"), Peer(client, "another")


def test_the_bounds_are_those_that_are_promised() -> None:
    assert (USUAL.most, USUAL.per_principal, USUAL.idle) == (256, 32, 600)


def test_of_one_principals_forty_sessions_the_oldest_end_and_anothers_stays(tmp_path: Path) -> None:
    async def work() -> None:
        async with site(tmp_path) as (one, another):
            older_than_all = await another.open()
            opened = [await one.open() for _ in range(40)]
            assert [await one.works(session) for session in opened] == [False] * 8 + [True] * 32
            assert await another.works(older_than_all)

    run(work())


def test_the_session_that_was_not_used_for_longest_gives_way(watched: None, tmp_path: Path) -> None:
    async def work() -> None:
        async with site(tmp_path, FEW) as (one, _):
            first, second, third = [await one.open() for _ in range(3)]
            assert await one.works(first)
            giving_way = Watched.made._server_instances[second]
            fourth = await one.open()
            await until(lambda: giving_way.is_terminated, "nothing of it stays")
            assert [await one.works(session) for session in (first, second, third, fourth)] == [True, False, True, True]

    run(work())


def test_when_all_are_taken_ones_own_gives_way_before_anothers(tmp_path: Path) -> None:
    async def work() -> None:
        async with site(tmp_path, FEW) as (one, another):
            older = [await another.open() for _ in range(2)]
            own = [await one.open() for _ in range(2)]
            newest = await one.open()
            assert [await one.works(session) for session in (*own, newest)] == [False, True, True]
            assert [await another.works(session) for session in older] == [True, True]

    run(work())


def test_when_none_of_ones_own_is_idle_the_oldest_of_all_gives_way(tmp_path: Path) -> None:
    async def work() -> None:
        async with site(tmp_path, FEW) as (one, another):
            older = [await another.open() for _ in range(3)]
            own = await one.open()
            async with one.listening(own):
                newest = await one.open()
                assert await one.works(own) and await one.works(newest)
                assert [await another.works(session) for session in older] == [False, True, True]

    run(work())


@pytest.mark.parametrize("limits", [SessionLimits(most=9, per_principal=2), SessionLimits(most=2, per_principal=9)])
def test_when_all_are_in_use_one_more_is_refused_until_one_is_not(
    limits: SessionLimits, watched: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> httpx.Response:
        async with site(tmp_path, limits) as (one, _):
            first, second = await one.open(), await one.open()
            async with one.listening(first):
                async with one.listening(second):
                    with capture_logs() as lines:
                        refused = [await one.initialize() for _ in range(5)]
                    assert [answer.status_code for answer in refused] == [503] * 5
                    assert [line["so_far"] for line in lines if line["event"] == "sessions refused"] == [1, 3]
                await until(lambda: Watched.made._idle_since(second) is not None, "its stream is gone")
                third = await one.open()
                assert [await one.works(session) for session in (first, second, third)] == [True, False, True]
            return refused[0]

    answer = run(work())
    body = answer.json()
    assert (body["jsonrpc"], body["id"], answer.headers["retry-after"]) == ("2.0", None, "10")
    assert body["error"]["message"].startswith("2 sessions")
    data = body["error"]["data"]
    assert (data["code"], data["retryable"]) == ("too_many_sessions", True) and "DELETE" in data["hint"]
    assert not [record for record in caplog.records if record.exc_info]


def test_the_new_era_has_no_sessions_and_is_not_refused(tmp_path: Path) -> None:
    async def work() -> None:
        limits = SessionLimits(most=1, per_principal=1)
        async with real_gateway(tmp_path, target("local")) as gateway, served(gateway, sessions=limits) as there:
            async with httpx.AsyncClient(base_url=there.origin) as client:
                one = Peer(client, "tester")
                async with one.listening(await one.open()), there.client("auto") as modern:
                    assert await modern.list_tools()

    run(work())


def test_a_session_that_nobody_uses_ends(watched: None, tmp_path: Path) -> None:
    async def work() -> None:
        async with site(tmp_path, SessionLimits(idle=0.05)) as (one, _):
            session = await one.open()
            await until(lambda: session not in Watched.made._server_instances, "it ends by itself")
            assert not await one.works(session)

    run(work())


class Long:
    """A target whose one operation lasts until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.end, self.cut = asyncio.Event(), asyncio.Event(), False

    async def wait(self) -> None:
        self.begun.set()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cut = True
            raise


def test_a_call_that_runs_holds_its_session_after_its_client_has_gone(
    wait_long: str, watched: None, tmp_path: Path
) -> None:
    async def work() -> None:
        long, limits = Long(), SessionLimits(most=1, per_principal=1)
        async with served(fake_gateway(tmp_path, lambda *_: long, target("local")), sessions=limits) as there:
            async with httpx.AsyncClient(base_url=there.origin) as client:
                one = Peer(client, "one")
                session = await one.open()
                calling = asyncio.create_task(one.post(session, "tools/call", name=wait_long))
                await soon(long.begun)
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
                await until(lambda: Watched.made.through == 2, "the server knows that the client has gone")
                held = Watched.made._server_instances[session].idle_scope
                assert held is not None and held.deadline == math.inf
                assert (await one.initialize()).status_code == 503
                long.end.set()
                await until(lambda: Watched.made._idle_since(session) is not None, "the call has ended")
                assert await one.works(await one.open()) and not await one.works(session)
        assert not long.cut

    run(work())


def test_an_app_that_is_made_otherwise_is_not_left_without_bounds() -> None:
    with pytest.raises(LookupError, match="0 MCP endpoints"):
        bound_sessions(Starlette(), FastMCP("x"), SessionLimits())
