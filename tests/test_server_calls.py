"""Calls over HTTP in both protocol eras: defects, progress, cancellation, and news of the registry."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastmcp.client.messages import MessageHandler
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from systemmanager.gateway import Gateway
from systemmanager.operation import CATALOGUE, Risk, operation
from systemmanager.ports import Facts, Result
from systemmanager.server.app import build, caller_of
from systemmanager.server.changes import Changes
from systemmanager.server.http import http_app, listening
from systemmanager.server.listing import Listing
from systemmanager.settings import Settings
from tests.serving import ACCEPT, BEARER, ERAS, INITIALIZE, Era, Served, by_token, http, served
from tests.support import fake_gateway, real_gateway, records, registry, run, target

both_eras = pytest.mark.parametrize("era", ERAS)


@both_eras
def test_a_defect_shows_nothing_of_the_inside(era: Era, tmp_path: Path) -> None:
    def broken(permit: Any, port: str) -> Any:
        raise RuntimeError("the canary password is hunter2")

    async def work() -> Any:
        async with served(fake_gateway(tmp_path, broken, target("local"))) as there, there.client(era) as client:
            return await client.call_tool("get_system_status", raise_on_error=False)

    answer = run(work())
    assert answer.structured_content["results"][0]["error"]["code"] == "internal_error"
    assert "hunter2" not in str(answer)


@both_eras
@pytest.mark.parametrize("request_kind", ["tools", "prompts", "resource", "completion"])
def test_a_defect_beside_the_calls_shows_nothing_either(
    request_kind: str, era: Era, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the canary password is hunter2")

    async def work() -> Any:
        async with http(tmp_path) as (there, _), there.client(era) as client:
            monkeypatch.setattr("systemmanager.server.listing.Usable", broken)
            monkeypatch.setattr("systemmanager.server.resources.FleetView", broken)
            monkeypatch.setattr(Gateway, "last_seen", broken)
            status = "systemmanager://targets/{id}/status"
            await {
                "tools": client.list_tools,
                "prompts": client.list_prompts,
                "resource": lambda: client.read_resource(status.format(id="local")),
                "completion": lambda: client.complete(
                    ResourceTemplateReference(type="ref/resource", uri=status), {"name": "id", "value": ""}
                ),
            }[request_kind]()

    with pytest.raises(MCPError) as caught:
        run(work())
    assert "hunter2" not in str(caught.value) + str(caught.value.error)


# --- one call, one question ------------------------------------------------------------------------------------------


@both_eras
def test_a_call_does_not_list_the_tools(era: Era, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK lists all tools on each 2026-07-28 call that has arguments, unless it is kept from it."""
    listed: list[int] = []
    before = Listing.list_tools

    async def counting(self: Listing, tools: Any) -> Any:
        listed.append(len(tools))
        return await before(self, tools)

    monkeypatch.setattr(Listing, "list_tools", counting)

    async def work() -> int:
        async with http(tmp_path) as (there, _), there.client(era) as client:
            await client.call_tool("list_targets", {"limit": 5})
            listed.clear()
            for limit in range(5, 10):
                await client.call_tool("list_targets", {"limit": limit})
            return len(listed)

    assert run(work()) == 0
    assert len([one for one in records(tmp_path) if one["phase"] == "intent"]) == 6


# --- long calls ------------------------------------------------------------------------------------------------------


class Waited(Result):
    seconds: float


class Waiting:
    """A target whose one operation waits until it is cancelled."""

    def __init__(self) -> None:
        self.begun, self.ended, self.calls = asyncio.Event(), asyncio.Event(), 0

    async def wait(self) -> None:
        self.calls += 1
        self.begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0)
                self.ended.set()


@pytest.fixture
def wait_long() -> Iterator[str]:
    """An operation that the catalogue holds for one test: it changes something and takes a minute."""

    @operation(scope="system:admin", capability="system:admin", risk=Risk.LOW)
    async def wait_long(facts: Facts) -> Waited:
        """Wait for a long time, for the tests of cancellation."""
        await facts.wait()  # type: ignore[attr-defined]
        return Waited(seconds=60)

    yield "wait_long"
    del CATALOGUE["wait_long"]


async def soon(happened: asyncio.Event) -> None:
    await asyncio.wait_for(happened.wait(), 10)


async def cancelled_record(tmp_path: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [one for one in records(tmp_path) if one["phase"] == "outcome"]
        if found:
            return found[-1]
        await asyncio.sleep(0.01)
    raise AssertionError("no outcome in the audit log")


@both_eras
def test_a_cancelled_request_ends_the_operation(era: Era, wait_long: str, tmp_path: Path) -> None:
    """By `notifications/cancelled` in the old era, by closing the response in the new one."""

    async def work() -> dict[str, Any]:
        waiting = Waiting()
        async with served(fake_gateway(tmp_path, lambda *_: waiting, target("local"))) as there:
            async with there.client(era) as client:
                calling = asyncio.create_task(client.call_tool(wait_long))
                await soon(waiting.begun)
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
                await soon(waiting.ended)
                outcome = await cancelled_record(tmp_path)
                assert await client.list_tools(), "the client can go on"
                return outcome

    outcome = run(work())
    assert (outcome["tool"], outcome["code"]) == ("wait_long", "cancelled")


def test_in_the_new_era_a_client_that_goes_away_ends_the_operation(wait_long: str, tmp_path: Path) -> None:
    async def work() -> dict[str, Any]:
        waiting = Waiting()
        async with served(fake_gateway(tmp_path, lambda *_: waiting, target("local"))) as there:
            client = there.client("auto")
            await client.__aenter__()  # type: ignore[no-untyped-call]
            calling = asyncio.create_task(client.call_tool(wait_long))
            await soon(waiting.begun)
            await client.close()  # type: ignore[no-untyped-call]
            await asyncio.gather(calling, return_exceptions=True)
            await soon(waiting.ended)
            return await cancelled_record(tmp_path)

    assert run(work())["code"] == "cancelled"


def test_in_the_old_era_the_end_of_a_session_ends_its_operations(wait_long: str, tmp_path: Path) -> None:
    async def work() -> dict[str, Any]:
        waiting = Waiting()
        async with served(fake_gateway(tmp_path, lambda *_: waiting, target("local"))) as there:
            async with httpx.AsyncClient(base_url=there.origin, headers=ACCEPT | BEARER) as client:
                opened = await client.post("/mcp", json=INITIALIZE)
                session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
                call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": wait_long}}
                calling = asyncio.create_task(client.post("/mcp", json=call, headers=session))
                await soon(waiting.begun)
                assert (await client.delete("/mcp", headers=session)).status_code == 200
                await soon(waiting.ended)
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
                return await cancelled_record(tmp_path)

    assert run(work())["code"] == "cancelled"


@both_eras
def test_a_fan_out_reports_its_progress(era: Era, tmp_path: Path) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append((done, total, message))

    async def work() -> Any:
        names = [target(f"web-0{number}") for number in range(1, 5)]
        async with real_gateway(tmp_path, *names) as gateway, served(gateway) as there, there.client(era) as client:
            return await client.call_tool("get_system_status", {"targets": "*"}, progress_handler=progress)

    assert run(work()).structured_content["summary"]["succeeded"] == 4
    assert [one[:2] for one in seen] == [(number, 4) for number in range(1, 5)]
    assert {str(one[2]) for one in seen} == {f"web-0{number} answered" for number in range(1, 5)}


# --- changes ---------------------------------------------------------------------------------------------------------


class Heard(MessageHandler):
    """What a client is told."""

    def __init__(self) -> None:
        self.tools, self.resources = asyncio.Event(), asyncio.Event()

    async def on_tool_list_changed(self, message: Any) -> None:
        self.tools.set()

    async def on_resource_list_changed(self, message: Any) -> None:
        self.resources.set()


def test_a_session_hears_that_the_registry_has_changed(tmp_path: Path) -> None:
    async def work(gateway: Gateway) -> None:
        modes = by_token(gateway)
        server = build(gateway, caller_of(gateway, modes))
        changes, settings = Changes(server), Settings.model_validate({"MCP_PORT": 0})
        heard = Heard()
        async with listening(http_app(server, gateway, settings, modes), settings) as port:
            there = Served(f"http://127.0.0.1:{port}/mcp")
            async with there.client("legacy", message_handler=heard) as client:
                assert len(await client.list_tools()) > 1
                gateway.replace_registry(registry(target("docker-01", "docker")))
                while not (heard.tools.is_set() and heard.resources.is_set()):
                    await changes.announce()
                    await asyncio.sleep(0.01)

    run(asyncio.wait_for(work(fake_gateway(tmp_path, lambda *_: None, target("local"))), 20))


def test_a_listener_of_the_new_era_hears_what_it_asked_for(tmp_path: Path) -> None:
    async def work(gateway: Gateway) -> list[str]:
        modes = by_token(gateway)
        server = build(gateway, caller_of(gateway, modes))
        changes, settings, stop = Changes(server), Settings.model_validate({"MCP_PORT": 0}), asyncio.Event()
        async with listening(http_app(server, gateway, settings, modes, stop), settings) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                async with client.stream("POST", "/mcp", json=LISTEN, headers=ACCEPT | BEARER | MODERN) as stream:
                    methods = []
                    async for line in stream.aiter_lines():
                        if line.startswith("data: "):
                            methods.append(json.loads(line[6:]).get("method", "result"))
                            await changes.announce() if len(methods) == 1 else stop.set()
                    return methods

    gateway = fake_gateway(tmp_path, lambda *_: None, target("local"))
    heard = run(asyncio.wait_for(work(gateway), 20))
    assert heard[:2] == ["notifications/subscriptions/acknowledged", "notifications/tools/list_changed"]
    assert "notifications/resources/list_changed" not in heard


MODERN = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"}
LISTEN = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "subscriptions/listen",
    "params": {
        "notifications": {"toolsListChanged": True},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        },
    },
}


def test_all_tools_together_cost_a_model_less_than_the_budget() -> None:
    from tests.benchmarks.tokens import BUDGET, schemas

    assert sum(run(schemas()).values()) <= BUDGET
