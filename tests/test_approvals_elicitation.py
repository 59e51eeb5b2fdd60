"""Asking at the client, in both eras: only where policy.yaml allows it, and what comes back is not taken on trust."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastmcp.client.elicitation import ElicitResult

from systemmanager.operation import Risk
from systemmanager.policy.demands import Approvals
from systemmanager.policyfile import Policy
from tests.fakes import codes
from tests.serving import ERAS, Era, Served, served, token
from tests.support import records, registry, run, target
from tests.test_approvals_desk import PULL, Scene, error

TOOL = "pull_docker_image"


@asynccontextmanager
async def scene_with(folder: Path, *, dual: bool = False, **fields: Any) -> AsyncIterator[tuple[Scene, Served]]:
    scene = Scene(folder)
    scene.desk.rules = lambda: scene.gateway.policy.approvals
    scene.gateway.policy = Policy(approvals=Approvals(**{"elicitation": Risk.CRITICAL, **fields}))
    scene.gateway.replace_registry(registry(target("a", "docker", constraints={"dual_approval": dual})))
    async with served(scene.gateway) as there:
        yield scene, there


async def call(there: Served, era: Era, says: Any, seen: list[str]) -> dict[str, Any]:
    async def handler(message: str, response_type: Any, params: Any, context: Any) -> Any:
        seen.append(message)
        return says

    fields = {} if says is None else {"elicitation_handler": handler}
    async with there.client(era, **fields) as client:
        done = await client.call_tool(TOOL, PULL, raise_on_error=False)
        reply: dict[str, Any] = done.structured_content
        return reply


@pytest.mark.parametrize("era", ERAS)
def test_the_person_at_the_client_says_yes(tmp_path: Path, era: Era) -> None:
    async def work() -> None:
        async with scene_with(tmp_path) as (scene, there):
            seen: list[str] = []
            yes: ElicitResult[Any] = ElicitResult(action="accept", content={"approve": True})
            assert codes(await call(there, era, yes, seen)) == {"a": "ok"} and scene.engine.pulled == 1
            (message,) = seen
            assert TOOL in message and "critical" in message and "targets: a" in message and '"nginx"' in message
            assert codes(await call(there, era, None, seen)) == {"a": "approval_required"}, "it was for once"
            assert scene.engine.pulled == 1

    run(work())
    (intent,) = [one for one in records(tmp_path) if one["phase"] == "intent"]
    assert intent["approved_by"] == "elicited:tester"


NOT: dict[str, Any] = {
    "no": ElicitResult(action="accept", content={"approve": False}),
    "accepted without a word": ElicitResult(action="accept", content={}),
    "a text": ElicitResult(action="accept", content={"approve": "true"}),
    "another word": ElicitResult(action="accept", content={"value": True}),
    "declined": ElicitResult(action="decline"),
    "cancelled": ElicitResult(action="cancel"),
    "nobody there": None,
}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", NOT)
def test_everything_else_is_no_yes(tmp_path: Path, name: str, era: Era) -> None:
    async def work() -> None:
        async with scene_with(tmp_path) as (scene, there):
            try:
                reply = await call(there, era, NOT[name], [])
            except Exception as raised:  # the client's own checks of what its handler says
                assert name in ("a text", "another word", "accepted without a word"), raised
            else:
                assert codes(reply) == {"a": "approval_refused" if name == "no" else "approval_required"}
            assert scene.engine.pulled == 0

    run(work())


NEVER: dict[str, dict[str, Any]] = {
    "no limit": {"elicitation": None},
    "a lower limit": {"elicitation": Risk.HIGH},
    "no channel": {"channels": ("webhook", "operator")},
    "two people": {"dual": True},
}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", NEVER)
def test_a_client_that_accepts_by_itself_is_not_asked_unless_policy_says_so(
    tmp_path: Path, name: str, era: Era
) -> None:
    async def work() -> None:
        async with scene_with(tmp_path, **NEVER[name]) as (scene, there):
            seen: list[str] = []
            yes: ElicitResult[Any] = ElicitResult(action="accept", content={"approve": True})
            assert codes(await call(there, era, yes, seen)) == {"a": "approval_required"}
            assert seen == [] and scene.engine.pulled == 0

    run(work())


# --- What a client may send back in the new era -----------------------------------------------------------------------

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}
YES = {"approval": {"action": "accept", "content": {"approve": True}}}


async def post(there: Served, subject: str = "tester", arguments: Any = PULL, **params: Any) -> dict[str, Any]:
    """One call of the new era as raw HTTP; its result, or the error."""
    headers = {
        "Authorization": f"Bearer {token(subject=subject)}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": TOOL,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    body |= {"params": {"name": TOOL, "arguments": arguments, "_meta": META, **params}}
    async with httpx.AsyncClient() as client:
        text = (await client.post(there.url, json=body, headers=headers)).text
    line = next((one[6:] for one in text.splitlines() if one.startswith("data: {")), text)
    answer: dict[str, Any] = json.loads(line)
    found: dict[str, Any] = answer.get("result") or answer
    return found


def test_an_answer_counts_once_for_the_call_that_was_asked_about(tmp_path: Path) -> None:
    async def work() -> None:
        async with scene_with(tmp_path) as (scene, there):
            scene.gateway._recent.counts = lambda subject: {}  # type: ignore[method-assign]
            asked = await post(there)
            state = asked["requestState"]
            assert asked["resultType"] == "input_required" and list(asked["inputRequests"]) == ["approval"]
            (waiting,) = scene.desk.store.all("pending")
            forged = [waiting.id, state[:-4] + "AAAA", "", "x" * 5000]
            for one in forged:
                await post(there, inputResponses=YES, requestState=one)
            await post(there, inputResponses=YES)
            await post(there, inputResponses=YES, requestState=state, arguments={**PULL, "image_name": "evil"})
            await post(there, subject="mallory", inputResponses=YES, requestState=state)
            assert scene.engine.pulled == 0 and scene.desk.store.get(waiting.id).state == "pending"
            done = await post(there, inputResponses=YES, requestState=state)
            assert codes(done["structuredContent"]) == {"a": "ok"} and scene.engine.pulled == 1
            again = await post(there, inputResponses=YES, requestState=state)
            assert error(again["structuredContent"])["code"] == "approval_required" and scene.engine.pulled == 1

    run(work())
