"""An assistant that does what the gateway's prompts say, to the letter, and an operator who approves its calls.

`fleet` writes targets.yaml for real servers and starts a gateway; `assistant` is an MCP client of it.
"""

import asyncio
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from mcp_types import TextContent

from tests.real.openssh import SshServer
from tests.serving import Era, Running, Served, command, serving

STEP = re.compile(r"^\d+\. Call (\w+) with (\{.*\})\.$", re.MULTILINE)
PLANNED = re.compile(r"<plan_id of step (\d+)>")
ENDS_WITHIN = 90.0

Answer = dict[str, Any]


@dataclass
class Assistant:
    """`read` is the text of every answer, as a model reads it; `approved` the ids that the operator said yes to."""

    client: Client[Any]
    folder: Path
    read: list[str] = field(default_factory=list)
    approved: list[str] = field(default_factory=list)

    async def ask(self, prompt: str, **arguments: str) -> list[Answer]:
        """The answers to all calls that a prompt names, in their order."""
        (message,) = (await self.client.get_prompt(prompt, arguments)).messages
        answers: list[Answer] = []
        for tool, said in STEP.findall(text_of(message.content)):
            given = json.loads(PLANNED.sub(lambda found: plan_of(answers[int(found[1]) - 1]), said))
            answers.append(await self.done(tool, given))
        return answers

    async def done(self, tool: str, given: Mapping[str, Any]) -> Answer:
        """The last answer to one call: approved where it has to be, and waited for where it became a job."""
        answer = await self.call(tool, given)
        if (id := approval_of(answer)) is not None:
            await asyncio.to_thread(command, self.folder, "approvals", "approve", id, "--yes")
            self.approved.append(id)
            answer = await self.call(tool, {**given, "approval_id": id})
        deadline = time.monotonic() + ENDS_WITHIN
        while (job := answer.get("job")) is not None:
            assert time.monotonic() < deadline, answer
            (status,) = (await self.call("job_status", {"job_id": job["id"]}))["results"]
            if status["data"]["state"] == "running":
                await asyncio.sleep(0.3)
                continue
            results = [*status["data"].get("results", ()), *status["data"].get("untrusted_results", ())]
            answer = {"call_id": job["id"], "tool": answer["tool"], "results": results}
        return answer

    async def call(self, tool: str, given: Mapping[str, Any]) -> Answer:
        answer = await self.client.call_tool(tool, dict(given), raise_on_error=False)
        self.read.append(text_of(answer.content[0]))
        assert answer.structured_content is not None
        return answer.structured_content


def text_of(content: Any) -> str:
    assert isinstance(content, TextContent)
    return content.text


def plan_of(answer: Answer) -> str:
    """The plan that a dry run made: one for all targets."""
    (id,) = {one["data"]["plan_id"] for one in answer["results"] if one["ok"]}
    return str(id)


def approval_of(answer: Answer) -> str | None:
    """The approval that a call waits for."""
    for one in answer.get("results", ()):
        error = one.get("error") or {}
        if error.get("code") == "approval_required":
            return str(error["details"]["approval_id"])
    return None


def by_target(answer: Answer) -> dict[str, Answer]:
    assert "results" in answer, answer
    return {one["target"]: one for one in answer["results"]}


def entry(id: str, server: SshServer, **fields: Any) -> Answer:
    """A target as targets.yaml has it; fields of `connection` are added to those of the server."""
    where = {"host": server.host, "port": server.port, "username": server.username}
    where |= {"key_path": str(server.client_key), "host_key": server.fingerprint, **fields.pop("connection", {})}
    return {
        "id": id, "type": "remote", "executor": "ssh", "connection": where, "capabilities": ["admin"],
        "constraints": {"sudo_policy": "none", "paths": ["/var/log"]}, **fields,
    }  # fmt: skip


@pytest.fixture
def home() -> Iterator[Path]:
    """A gateway's folder, with a short name: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sm-home-") as name:
        yield Path(name)


@contextmanager
def fleet(folder: Path, *entries: Answer, policy: Mapping[str, Any] | None = None) -> Iterator[Running]:
    """A gateway process for these targets."""
    targets, rules = folder / "targets.yaml", folder / "policy.yaml"
    targets.write_text(json.dumps({"version": "1.0", "targets": {one["id"]: one for one in entries}}))
    rules.write_text(json.dumps({"version": "1.0", **(policy or {})}))
    settings = {"SYSTEMMANAGER_TARGETS_CONFIG": str(targets), "SYSTEMMANAGER_POLICY_CONFIG": str(rules)}
    with serving(folder, settings) as gateway:
        yield gateway


@asynccontextmanager
async def assistant(gateway: Running, folder: Path, era: Era = "auto") -> AsyncIterator[Assistant]:
    async with Served(gateway.url).client(era, "admin") as client:
        yield Assistant(client, folder)
