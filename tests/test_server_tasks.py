"""MCP tasks over real HTTP: the utility of 2025-11-25 and the extension of 2026-07-28, over the gateway's own jobs."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import mcp_types as types
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from pydantic import Field

from systemmanager import still
from systemmanager.arguments import call_model
from systemmanager.operation import CATALOGUE
from systemmanager.server.auth.ledger import Ledger
from systemmanager.server.auth.tokens import claims_of
from systemmanager.server.tasks import EXTENSION, RELATED, lasts
from tests.serving import ACCEPT, INITIALIZE, KEYS, token
from tests.support import records, run
from tests.tasking import PULL, Anything, Gateways, OfTask, OldClient, about, ask, begin, call, client, refused, until
from tests.test_jobs import Engine

MISSING, MISMATCH, NOT_FOUND, INVALID = -32021, -32020, -32601, -32602

both = pytest.mark.parametrize("era", ["old", "new"])


def scene(tmp_path: Path, work: Callable[[Gateways], Awaitable[None]]) -> None:
    async def main() -> None:
        await work(Gateways(tmp_path))

    run(main())


# --- what is offered -------------------------------------------------------------------------------------------------


def test_tools_that_may_become_jobs_say_so_in_the_old_era(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "old") as who:
            tools = (await ask(who, types.ListToolsRequest()))["tools"]
            support = {one["name"]: one.get("execution", {}).get("taskSupport") for one in tools}
            assert who.capabilities["tasks"] == {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
        assert {name for name, one in support.items() if one == "optional"} == {
            name for name, one in CATALOGUE.items() if name in support and lasts(one)
        }
        assert {one.name for one in CATALOGUE.values() if one.job or "strategy" in call_model(one).model_fields} | {
            "apply_plan"
        } == {one.name for one in CATALOGUE.values() if lasts(one)}
        assert support["get_container_list"] is None and support["pull_docker_image"] == "optional"

    scene(tmp_path, work)


def test_the_new_era_has_the_extension_and_not_the_utility(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "new") as who:
            capabilities = (await who.session.discover()).capabilities
            assert capabilities.tasks is None and capabilities.extensions[EXTENSION] == {}
            assert all(one.execution is None for one in await who.list_tools())
            for method in ("tasks/result", "tasks/list"):
                assert (await refused(who, about(method, "0" * 16))).code == NOT_FOUND

    scene(tmp_path, work)


# --- a task and its job ----------------------------------------------------------------------------------------------


@both
def test_a_task_is_a_job_by_the_same_id_and_ends_with_the_answer_of_the_call(tmp_path: Path, era: str) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, era) as who:
            task = await begin(who, era)
            assert task["status"] == "working" and task["createdAt"] <= task["lastUpdatedAt"]
            kept, every = ("ttl", "pollInterval") if era == "old" else ("ttlMs", "pollIntervalMs")
            assert (task[kept], task[every]) == (7 * 24 * 3600 * 1000, 2000)
            assert task.get("resultType") == (None if era == "old" else "task")
            running = await until(who, task["taskId"], "working")
            assert "result" not in running and running["taskId"] == task["taskId"]
            status = (await ask(who, call("job_status", {"job_id": task["taskId"]})))["structuredContent"]
            assert status["results"][0]["data"]["state"] == "running"
            made.engine.may_end.set()
            ended = await until(who, task["taskId"], "completed")
            if era == "old":
                result = await ask(who, about("tasks/result", task["taskId"]))
                assert result.pop("_meta")[RELATED] == {"taskId": task["taskId"]}
            else:
                result = ended["result"]
                assert "_meta" not in result and result["resultType"] == "complete"
            assert result["isError"] is False and ended["createdAt"] == task["createdAt"] <= ended["lastUpdatedAt"]
            assert result["structuredContent"]["call_id"] == task["taskId"]
            assert result["structuredContent"]["results"][0]["data"]["updated"] is True
            assert json.loads(result["content"][0]["text"])["results"][0]["data"]["updated"] is True
            again = (await ask(who, call("job_status", {"job_id": task["taskId"]})))["structuredContent"]
            assert again["results"][0]["data"]["results"] == result["structuredContent"]["results"]
        assert made.engine.begun == ["nginx"]

    scene(tmp_path, work)


@both
def test_a_task_survives_its_gateway(tmp_path: Path, era: str) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, era) as who:
            id = (await begin(who, era))["taskId"]
            while not made.engine.begun:
                await asyncio.sleep(0.005)
        async with made.one() as there, client(there, era) as who:
            assert (await until(who, id, "working"))["taskId"] == id
            waiting = asyncio.create_task(ask(who, about("tasks/result", id))) if era == "old" else None
            await asyncio.sleep(0.05)
            made.engine.may_end.set()
            assert (await until(who, id, "completed"))["taskId"] == id
            if waiting is not None:
                assert (await waiting)["structuredContent"]["results"][0]["ok"] is True
        async with made.one() as there, client(there, era) as who:
            assert (await until(who, id, "completed"))["taskId"] == id
        assert made.engine.ended == ["nginx"]

    scene(tmp_path, work)


@both
def test_a_task_is_cancelled_as_its_job_is(tmp_path: Path, era: str) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, era) as who:
            id = (await begin(who, era))["taskId"]
            answer = await ask(who, about("tasks/cancel", id))
            assert answer.get("status") == ("cancelled" if era == "old" else None)
            ended = await until(who, id, "cancelled", "completed", "failed")
            assert ended["status"] == "cancelled" and "result" not in ended
            if era == "old":
                assert (await refused(who, about("tasks/cancel", id))).code == INVALID
                result = await ask(who, about("tasks/result", id))
                assert result["structuredContent"]["results"][0]["error"]["code"] == "cancelled"
            else:
                again = await ask(who, about("tasks/cancel", id))
                assert again["resultType"] == "complete" and "status" not in again
        assert made.engine.begun == ["nginx"] and made.engine.ended == []

    scene(tmp_path, work)
    told = [(one["tool"], one["phase"]) for one in records(tmp_path) if one["tool"] == "job_cancel"]
    assert told[:2] == [("job_cancel", "intent"), ("job_cancel", "outcome")]


@pytest.mark.parametrize("seen_at", ["once", "the end"])
def test_a_wait_for_a_task_is_over_with_the_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_at: str
) -> None:
    monkeypatch.setattr(still, "KNOWN_EVERY", 0.05 if seen_at == "once" else 600)
    mine = token("admin", subject="ann")
    bearing = {"Authorization": f"Bearer {mine}"}

    async def work(made: Gateways) -> None:
        async with made.one() as there, OldClient(there.url, bearing) as who, httpx.AsyncClient() as other:
            id = (await begin(who, "old"))["taskId"]
            waiting = asyncio.create_task(refused(who, about("tasks/result", id)))
            assert not (await asyncio.wait([waiting], timeout=0.3))[0], "as long as the token counts"
            Ledger(tmp_path / "tokens.sqlite").revoke(str(claims_of(KEYS, mine)["jti"]), time.time() + 3600)
            while (await other.post(there.url, json=INITIALIZE, headers={**ACCEPT, **bearing})).status_code != 401:
                await asyncio.sleep(0.05)
            if seen_at == "the end":
                assert not waiting.done()
                made.engine.may_end.set()
            assert (await asyncio.wait_for(waiting, 10)).data["code"] == "unauthenticated"
            made.engine.may_end.set()

    scene(tmp_path, work)


@both
def test_a_task_is_seen_by_whoever_began_it_alone(tmp_path: Path, era: str) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, era) as ann, client(there, era, subject="bob") as bob:
            id = (await begin(ann, era))["taskId"]
            methods = ["tasks/get", "tasks/cancel", "tasks/result" if era == "old" else "tasks/update"]
            for method in methods:
                responses: dict[str, Any] = {"inputResponses": {}} if method == "tasks/update" else {}
                error = await refused(bob, about(method, id, **responses))
                absent = await refused(bob, about(method, "0" * 16, **responses))
                assert error.code == absent.code == INVALID
                assert error.message == absent.message.replace("0" * 16, id)
                assert (await refused(bob, about(method, "../x", **responses))).code == INVALID
            if era == "old":
                every = types.ListTasksRequest()
                assert (await ask(bob, every))["tasks"] == []
                assert [one["taskId"] for one in (await ask(ann, every))["tasks"]] == [id]
            assert made.jobs.store.one(id).state == "running"  # type: ignore[union-attr]

    scene(tmp_path, work)


# --- how a call becomes a task ---------------------------------------------------------------------------------------


def test_a_call_of_the_new_era_that_is_over_at_once_is_no_task(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        made.engine.may_end.set()
        async with made.one() as there, client(there, "new") as who:
            answer = await begin(who, "new")
            assert answer["resultType"] == "complete" and "taskId" not in answer
            assert answer["structuredContent"]["results"][0]["data"]["updated"] is True

    scene(tmp_path, work)


def test_who_takes_no_tasks_gets_none(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "new", takes=False) as who:
            answer = await ask(who, call("pull_docker_image", {**PULL, "wait": 0}))
            id = answer["structuredContent"]["job"]["id"]
            assert answer["resultType"] == "complete" and "taskId" not in answer
            error = await refused(who, about("tasks/get", id))
            assert error.code == MISSING and error.data["requiredCapabilities"]["extensions"] == {EXTENSION: {}}
        async with made.one() as there, client(there, "old") as who:
            answer = await ask(who, call("pull_docker_image", {**PULL, "wait": 0}))
            assert "task" not in answer and answer["structuredContent"]["job"]["state"] == "running"
            made.engine.may_end.set()

    scene(tmp_path, work)


def test_the_header_names_the_task_that_the_request_is_about(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "new") as who:
            id = (await begin(who, "new"))["taskId"]

            class Both(OfTask):
                other: str = "0" * 16

            class Elsewhere(types.Request[Both, str]):
                name_param = "other"

            request = Elsewhere(method="tasks/get", params=Both.model_validate({"taskId": id}))
            assert (await refused(who, request)).code == MISMATCH
            made.engine.may_end.set()
            await until(who, id, "completed")

    scene(tmp_path, work)


def test_a_tool_without_task_support_can_not_be_a_task(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "old") as who:
            for tool in ("list_targets", "no_such_tool"):
                assert (await refused(who, call(tool, {}, task=True))).code == NOT_FOUND

    scene(tmp_path, work)


def test_a_call_that_is_refused_is_no_task_and_says_why(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "old") as who:
            error = await refused(who, call("pull_docker_image", {**PULL, "target": "b"}, task=True))
            assert error.data["code"] == "capability_missing" and "capability_missing" in error.message
            error = await refused(who, call("pull_docker_image", {"image_name": "a b"}, task=True))
            assert error.code == INVALID and error.data["code"] == "invalid_arguments"
            assert (await ask(who, types.ListTasksRequest()))["tasks"] == []
        async with made.one() as there, client(there, "new") as who:
            answer = await ask(who, call("pull_docker_image", {**PULL, "target": "b"}))
            assert answer["isError"] and answer["resultType"] == "complete"
        assert made.engine.begun == []

    scene(tmp_path, work)


def test_what_would_be_no_job_is_one_when_the_client_wants_a_task(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "old") as who:
            id = (await begin(who, "old", **PULL, dry_run=True))["taskId"]
            result = await ask(who, about("tasks/result", id))
            assert result["structuredContent"]["results"][0]["data"]["dry_run"] is True, result
            assert made.engine.begun == []

    scene(tmp_path, work)


def test_a_tool_that_fails_is_a_failed_task_in_the_old_era_and_a_completed_one_in_the_new(tmp_path: Path) -> None:
    async def broken(self: Engine, image: str, tag: str) -> Any:
        from systemmanager.errors import EngineRefused

        self.begun.append(image)
        await self.may_end.wait()
        raise EngineRefused("no such image")

    async def work(made: Gateways) -> None:
        made.engine.pull = broken.__get__(made.engine)  # type: ignore[method-assign]
        async with made.one() as there, client(there, "old") as old, client(there, "new") as new:
            id = (await begin(new, "new"))["taskId"]
            made.engine.may_end.set()
            ended = await until(new, id, "completed", "failed")
            assert ended["status"] == "completed" and ended["result"]["isError"] is True and "error" not in ended
            assert (await until(old, id, "completed", "failed"))["status"] == "failed"
            result = await ask(old, about("tasks/result", id))
            assert result["isError"] is True
            assert result["structuredContent"]["results"] == ended["result"]["structuredContent"]["results"]

    scene(tmp_path, work)


def test_a_task_that_was_cut_off_says_so(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        async with made.one() as there, client(there, "old") as who:
            id = (await begin(who, "old"))["taskId"]
            while not made.engine.begun:
                await asyncio.sleep(0.005)
        with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
            database.execute("UPDATE job SET tool = 'manage_container'")
            database.execute("INSERT INTO kept VALUES (?, 'a', 'begun', 'true')", (id,))
        database.close()
        async with made.one() as there, client(there, "old") as old, client(there, "new") as new:
            ended = await until(old, id, "failed", "completed")
            assert ended["status"] == "failed" and "look before calling again" in ended["statusMessage"]
            ended = await until(new, id, "failed", "completed")
            assert ended["status"] == "completed" and ended["result"]["isError"] is True

    scene(tmp_path, work)


def test_old_tasks_are_listed_page_by_page(tmp_path: Path) -> None:
    async def work(made: Gateways) -> None:
        made.engine.may_end.set()
        async with made.one() as there, client(there, "old") as who:
            ids = {(await begin(who, "old", **PULL, idempotency_key=f"k{n}"))["taskId"] for n in range(3)}
            again = (await begin(who, "old", **PULL, idempotency_key="k0"))["taskId"]
            assert again in ids and len(ids) == 3
            error = await refused(who, types.ListTasksRequest(params=types.PaginatedRequestParams(cursor="x")))
            assert error.code == INVALID
            page = await ask(who, types.ListTasksRequest(params=types.PaginatedRequestParams(cursor="1")))
            assert len(page["tasks"]) == 2 and {one["taskId"] for one in page["tasks"]} < ids

    scene(tmp_path, work)


def test_a_client_of_the_sdk_waits_for_the_result_by_itself(tmp_path: Path) -> None:
    """As clients do it: the task's own shape claimed, and looked at until there is a result."""

    class Claimed(types.Result):
        result_type: Literal["task"] = Field(alias="resultType")
        task_id: str = Field(alias="taskId")

    async def work(made: Gateways) -> None:
        async def resolve(task: Claimed, where: ClaimContext) -> types.CallToolResult:
            while True:
                found = (await where.session.send_request(about("tasks/get", task.task_id), Anything)).raw
                if found["status"] == "completed":
                    return types.CallToolResult.model_validate(found["result"])
                made.engine.may_end.set()

        class Resolves(ClientExtension):
            identifier = EXTENSION

            def claims(self) -> Sequence[ResultClaim[Any]]:
                return (ResultClaim(result_type="task", model=Claimed, resolve=resolve),)

        bearing = {"Authorization": f"Bearer {token('admin')}"}
        async with made.one() as there:
            transport = StreamableHttpTransport(there.url, headers=bearing)
            async with Client(transport, mode="auto", extensions=[Resolves()]) as who:
                answer = await who.call_tool("pull_docker_image", PULL)
        assert answer.structured_content["results"][0]["data"]["updated"] is True

    scene(tmp_path, work)
