"""Clients that take tasks, in both eras, and gateways whose jobs they are."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import mcp_types as types
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.extension import ClientExtension
from mcp.shared.exceptions import MCPError
from pydantic import ConfigDict, Field

from systemmanager.gateway import Gateway
from systemmanager.jobs import taking
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobStore
from systemmanager.server.tasks import EXTENSION
from tests.serving import ACCEPT, INITIALIZE, Served, served, token
from tests.support import fake_gateway, target
from tests.test_jobs import Engine

PULL = {"image_name": "nginx", "target": "a"}


class Anything(types.Result):
    """An answer as it came."""

    model_config = ConfigDict(extra="allow")

    @property
    def raw(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True)


class OfTask(types.RequestParams):
    task_id: str = Field(alias="taskId")
    input_responses: dict[str, Any] | None = Field(default=None, alias="inputResponses")


def about(method: str, id: str, **more: Any) -> types.Request[Any, Any]:
    class OneTask(types.Request[OfTask, str]):
        name_param = "taskId"

    return OneTask(method=method, params=OfTask.model_validate({"taskId": id, **more}))


async def approve(_: Sequence[Any]) -> str:
    return "the test"


class Gateways:
    """One gateway after the other over the same state and engine, each behind HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.engine = folder, Engine()
        self.jobs: Jobs

    def _made(self) -> Gateway:
        self.jobs = Jobs(JobStore(self.folder / "jobs.sqlite"), self.folder / "jobs")
        places = target("a", "docker"), target("b", "docker", capabilities=["readonly"])
        gateway = fake_gateway(self.folder, lambda permit, _: self.engine, *places, jobs=self.jobs)
        gateway.journal.handed_over = self.jobs.handed_over
        gateway.journal.begin()
        gateway.call = partial(gateway.call, approve=approve)  # type: ignore[method-assign]
        return gateway

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Served]:
        gateway = self._made()
        async with taking.working(gateway), served(gateway) as there:
            yield there


class OldClient:
    """A client of 2025-11-25 as it speaks: the SDK's own of today takes no task for an answer in that era."""

    def __init__(self, url: str, bearing: dict[str, str]) -> None:
        self._http, self._url = httpx.AsyncClient(headers={**ACCEPT, **bearing}, timeout=30), url
        self.capabilities: dict[str, Any] = {}
        self._number = 1

    async def __aenter__(self) -> "OldClient":
        first = await self._http.post(self._url, json=INITIALIZE)
        version = {"MCP-Protocol-Version": "2025-11-25", "Mcp-Session-Id": first.headers["mcp-session-id"]}
        self._http.headers.update(version)
        self.capabilities = _event(first.text)["result"]["capabilities"]
        await self._http.post(self._url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, request: types.Request[Any, Any]) -> dict[str, Any]:
        body = request.model_dump(by_alias=True, mode="json", exclude_none=True)
        self._number += 1
        answer = _event((await self._http.post(self._url, json={"jsonrpc": "2.0", "id": self._number, **body})).text)
        if "error" in answer:
            raise MCPError(**answer["error"])
        found: dict[str, Any] = answer["result"]
        return found


def _event(text: str) -> dict[str, Any]:
    """The answer in a stream of events."""
    found = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    answer: dict[str, Any] = next(one for one in found if "id" in one)
    return answer


class Takes(ClientExtension):
    """A client of 2026-07-28 that takes tasks, and shows them to the test instead of waiting for them."""

    identifier = EXTENSION


def client(there: Served, era: str, *, subject: str = "ann", takes: bool = True) -> Any:
    bearing = {"Authorization": f"Bearer {token('admin', subject=subject)}"}
    if era == "old":
        return OldClient(there.url, bearing)
    transport = StreamableHttpTransport(there.url, headers=bearing)
    return Client(transport, mode="auto", extensions=[Takes()] if takes else None)


Who = OldClient | Client[Any]


async def ask(who: Who, request: Any) -> dict[str, Any]:
    if isinstance(who, OldClient):
        return await who.ask(request)
    return (await who.session.send_request(request, Anything)).raw


async def refused(who: Who, request: Any) -> Any:
    with pytest.raises(MCPError) as caught:
        await ask(who, request)
    return caught.value.error


def call(tool: str, arguments: dict[str, Any], ttl: int | None = None, *, task: bool = False) -> Any:
    wish = types.TaskMetadata(ttl=ttl) if task else None
    return types.CallToolRequest(params=types.CallToolRequestParams(name=tool, arguments=arguments, task=wish))


async def begin(who: Who, era: str, tool: str = "pull_docker_image", **arguments: Any) -> dict[str, Any]:
    """A call that becomes a task: the task."""
    answer = await ask(who, call(tool, arguments or PULL, task=era == "old"))
    found: dict[str, Any] = answer["task"] if era == "old" else answer
    return found


async def until(who: Who, id: str, *statuses: str) -> dict[str, Any]:
    for _ in range(500):
        found = await ask(who, about("tasks/get", id))
        if found["status"] in statuses:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"the task did not become {statuses}: {found}")
