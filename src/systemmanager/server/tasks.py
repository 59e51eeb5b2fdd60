"""MCP tasks: the gateway's jobs in the words of clients that come back for an answer.

A task is a job, by the same id and for whoever may see the job, so it survives client, connection and gateway; nothing
is kept for it. Two forms, both without a word from the model:

- the `tasks` utility of 2025-11-25: the client asks for a task with the call, for a tool with `taskSupport`;
- the extension `io.modelcontextprotocol/tasks` (SEP-2663) of 2026-07-28: the client says that it takes tasks, and a job
  that is not over at once is answered with one.

A task never waits for input: whatever has to be asked is asked before the job begins.
"""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastmcp import FastMCP
from fastmcp.server.context import Context
from fastmcp.server.dependencies import get_http_request
from fastmcp.server.extensions import MethodBinding, ServerExtension, read_client_extension_settings
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    PaginatedRequestParams,
    RequestParams,
    TextContent,
)
from mcp_types.jsonrpc import HEADER_MISMATCH
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

from systemmanager import shaping
from systemmanager.arguments import Later, may_be_job
from systemmanager.audit.record import timestamp
from systemmanager.errors import Unauthenticated
from systemmanager.gateway import Gateway
from systemmanager.jobs.job import INTERRUPTED
from systemmanager.jobs.store import KEPT, JobRow
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.plans.planner import APPLY
from systemmanager.server.caller import Caller
from systemmanager.shaping import Reply
from systemmanager.still import while_known

EXTENSION = "io.modelcontextprotocol/tasks"
RELATED = "io.modelcontextprotocol/related-task"
UTILITY = "2025-11-25"
"""The one version of the protocol whose core has tasks."""

AT_ONCE = 0.5
"""Seconds that a call of a client of 2026-07-28 waits for its result before it is answered with a task."""

POLL_EVERY = 2000
"""Milliseconds between two looks at a task, as clients are told."""

_KEPT = int(KEPT * 1000)
_UTILITY, _EXTENSION = frozenset({UTILITY}), frozenset(MODERN_PROTOCOL_VERSIONS)
_OFFERED: dict[str, Any] = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}

Ctx = ServerRequestContext[Any, Any]


@dataclass(slots=True)
class Wish:
    """That the client of one call takes a task, and the call's answer once it is there."""

    later: Later
    reply: Reply | None = None


_ASKED: ContextVar[Wish | None] = ContextVar("task_asked_for", default=None)


def lasts(operation: Operation) -> bool:
    """Whether a call of a tool may be a task."""
    return may_be_job(operation) or operation.name == APPLY


def wish_of(context: Context) -> Wish | None:
    """How the client of this call takes a task; None for one that takes none."""
    if (asked := _ASKED.get()) is not None:
        return asked
    if context.session.protocol_version not in _EXTENSION or context.client_extension_settings(EXTENSION) is None:
        return None
    return Wish(Later(AT_ONCE))


class TaskParams(RequestParams):
    task_id: str = Field(alias="taskId")


class UpdateParams(TaskParams):
    input_responses: dict[str, Any] = Field(alias="inputResponses")


class Tasks(ServerExtension):
    """The tasks of one gateway: the requests about them, and what a call is answered with that is one."""

    identifier = EXTENSION

    def __init__(self, gateway: Gateway, caller: Caller) -> None:
        self._gateway, self._caller = gateway, caller

    def methods(self) -> Sequence[MethodBinding]:
        both = _UTILITY | _EXTENSION
        return (
            MethodBinding("tasks/get", TaskParams, self._get, both),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, both),
            MethodBinding("tasks/update", UpdateParams, self._update, _EXTENSION),
            MethodBinding("tasks/result", TaskParams, self._result, _UTILITY),
            MethodBinding("tasks/list", PaginatedRequestParams, self._list, _UTILITY),
        )

    def offer(self, server: FastMCP) -> None:
        """Serve them; before everything else stands what the SDK has no place for in the answers of 2025-11-25."""
        server.add_extension(self)
        server._mcp_server.middleware.insert(0, self._utility)

    async def created(self, reply: Reply) -> dict[str, Any]:
        """What a call is answered with in 2026-07-28 when it goes on as a job."""
        row = await self._row(reply.call_id)
        return {"resultType": "task", **_new_form(row, "working")}

    # --- in the place of the SDK (2025-11-25) -------------------------------------------------------------------------

    async def _utility(self, ctx: Ctx, call_next: CallNext) -> HandlerResult:
        if ctx.method == "initialize":
            return _with_tasks(await call_next(ctx))
        params = ctx.params
        if ctx.method != "tools/call" or params is None or params.get("task") is None:
            return await call_next(ctx)
        if ctx.protocol_version != UTILITY:
            return await call_next(ctx)  # an unknown field there
        operation = CATALOGUE.get(str(params.get("name")))
        if operation is None or not lasts(operation):
            raise MCPError(METHOD_NOT_FOUND, "this tool can't be called as a task: it has no taskSupport")
        return await self._asked(ctx, call_next)

    async def _asked(self, ctx: Ctx, call_next: CallNext) -> dict[str, Any]:
        """A call that the client wants as a task is one, whatever it does; one that is refused is none."""
        wish = Wish(Later(0, always=True))
        token = _ASKED.set(wish)
        try:
            await call_next(ctx)
        finally:
            _ASKED.reset(token)
        if wish.reply is None:
            raise MCPError(INTERNAL_ERROR, "the gateway failed on this call")
        row = await self._kept(wish.reply.call_id)
        if row is None:
            raise _refused(wish.reply)
        return {"task": await self._old_form(row)}

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _get(self, ctx: Ctx, params: TaskParams) -> dict[str, Any]:
        _check(ctx, params.task_id)
        row = await self._mine("job_status", params.task_id)
        if ctx.protocol_version in _UTILITY:
            return await self._old_form(row)
        if row.ended is None or row.state == "cancelled":
            return _new_form(row, "working" if row.ended is None else "cancelled")
        return {**_new_form(row, "completed"), "result": _answer(row, await self._reply(row))}

    async def _cancel(self, ctx: Ctx, params: TaskParams) -> dict[str, Any]:
        _check(ctx, params.task_id)
        if ctx.protocol_version in _UTILITY:
            row = await self._mine("job_status", params.task_id)
            if row.ended is not None:
                raise MCPError(INVALID_PARAMS, f"task {row.id} has ended already: {row.state}")
        row = await self._mine("job_cancel", params.task_id)
        return await self._old_form(row) if ctx.protocol_version in _UTILITY else {}

    async def _update(self, ctx: Ctx, params: UpdateParams) -> dict[str, Any]:
        """No task asks for anything: answers to nothing are passed over."""
        _check(ctx, params.task_id)
        await self._mine("job_status", params.task_id)
        return {}

    async def _result(self, ctx: Ctx, params: TaskParams) -> dict[str, Any]:
        """The answer of the call, once it is there."""
        row: JobRow | None = await self._mine("job_status", params.task_id)
        if row is not None and row.ended is None:
            row = await self._ended(row)
        if row is None:
            raise _unknown(params.task_id)
        return {**_answer(row, await self._reply(row)), "_meta": {RELATED: {"taskId": row.id}}}

    async def _ended(self, row: JobRow) -> JobRow | None:
        """A job as it ended. Raises `MCPError` for a caller whose credential ends before it."""
        assert self._gateway.jobs is not None
        try:
            ended = await while_known(self._caller.still, self._gateway.jobs.ended(row.id))
            if self._caller.still is not None:
                await self._caller.still()
        except Unauthenticated as error:
            raise _fault(error.as_dict(), INVALID_REQUEST) from error
        await self._mine("job_status", row.id)
        return ended

    async def _list(self, ctx: Ctx, params: PaginatedRequestParams) -> dict[str, Any]:
        asked = {} if params.cursor is None else {"cursor": params.cursor}
        page = _data(await self._gateway.call(self._caller(), "list_jobs", asked))
        rows = [await self._kept(one["job_id"]) for one in page["jobs"]]
        tasks = [await self._old_form(row) for row in rows if row is not None]
        return {"tasks": tasks, **({"nextCursor": page["next"]} if page.get("next") else {})}

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _mine(self, tool: str, id: str) -> JobRow:
        """A job that the caller may see; judged and audited as a call of the job tool that the request stands for."""
        _data(await self._gateway.call(self._caller(), tool, {"job_id": id}))
        return await self._row(id)

    async def _row(self, id: str) -> JobRow:
        if (row := await self._kept(id)) is None:
            raise _unknown(id)
        return row

    async def _kept(self, id: str) -> JobRow | None:
        jobs = self._gateway.jobs
        return None if jobs is None else await _read(asyncio.to_thread(jobs.store.one, id))

    async def _reply(self, row: JobRow) -> Reply:
        assert self._gateway.jobs is not None
        return shaping.bound(await _read(self._gateway.jobs.reply_of(row)))

    async def _old_form(self, row: JobRow) -> dict[str, Any]:
        """A task as 2025-11-25 writes it, where the error of a tool is a failure of its task."""
        status = {"running": "working", "done": "completed", "cancelled": "cancelled"}.get(row.state)
        if status is None:
            status = "failed" if (await self._reply(row)).failed else "completed"
        return {**_said(row, status), "ttl": _KEPT, "pollInterval": POLL_EVERY}


# --- what goes over the wire -----------------------------------------------------------------------------------------


def _said(row: JobRow, status: str) -> dict[str, Any]:
    ended = f"{row.done} of {len(row.targets)} targets have ended"
    message = {"running": row.said or ended, "interrupted": INTERRUPTED}.get(row.state, ended)
    return {
        "taskId": row.id,
        "status": status,
        "statusMessage": message,
        "createdAt": timestamp(row.started),
        "lastUpdatedAt": timestamp(row.changed),
    }


def _new_form(row: JobRow, status: str) -> dict[str, Any]:
    """A task as SEP-2663 writes it."""
    return {**_said(row, status), "ttlMs": _KEPT, "pollIntervalMs": POLL_EVERY}


def _answer(row: JobRow, reply: Reply) -> dict[str, Any]:
    """What the call would have been answered with, had it been waited for."""
    text = reply.text("toon" if row.shown.get("format") == "toon" else "json")
    answer = CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=reply.as_dict(), is_error=reply.failed
    )
    return answer.model_dump(by_alias=True, mode="json", exclude_none=True)


def _with_tasks(answer: HandlerResult) -> HandlerResult:
    """The answer to `initialize` with what 2025-11-25 offers."""
    if isinstance(answer, BaseModel):
        answer = answer.model_dump(by_alias=True, mode="json", exclude_none=True)
    if answer is None or answer.get("protocolVersion") != UTILITY:
        return answer
    return {**answer, "capabilities": {**answer["capabilities"], "tasks": _OFFERED}}


def _check(ctx: Ctx, task_id: str) -> None:
    """Raises `MCPError` for a request of 2026-07-28 whose client does not take tasks, or whose header names another."""
    if ctx.protocol_version in _UTILITY:
        return
    if read_client_extension_settings(ctx, EXTENSION) is None:
        missing: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, f"the client does not say that it has {EXTENSION}", missing)
    try:
        named = get_http_request().headers.get(MCP_NAME_HEADER)
    except RuntimeError:
        return  # not over HTTP
    if named is not None and decode_header_value(named) != task_id:
        raise MCPError(HEADER_MISMATCH, "the Mcp-Name header names another task than the request")


def _data(reply: Reply) -> Mapping[str, Any]:
    """What a job tool answered. Raises `MCPError`."""
    error = reply.error or (reply.results[0].error if reply.results else None)
    if error is not None:
        raise _fault(error, INVALID_PARAMS if error["code"] in ("not_found", "invalid_arguments") else INTERNAL_ERROR)
    return reply.results[0].data or {}


def _refused(reply: Reply) -> MCPError:
    """Why a call became no task."""
    errors = [reply.error, *(one.error for one in reply.results)]
    error = next((one for one in errors if one is not None), None)
    if error is None:
        return MCPError(INTERNAL_ERROR, "this gateway keeps no jobs, so nothing can be a task")
    return _fault(error, INVALID_PARAMS if error["code"] == "invalid_arguments" else INVALID_REQUEST)


def _fault(error: Mapping[str, Any], code: int) -> MCPError:
    hint = f" {error['hint']}" if error.get("hint") else ""
    return MCPError(code, f"{error['code']}: {error['message']}{hint}", dict(error))


def _unknown(id: str) -> MCPError:
    return MCPError(INVALID_PARAMS, f"there is no task {id[:64]!r}")


async def _read(work: Any) -> Any:
    try:
        return await work
    except sqlite3.Error as error:
        raise MCPError(INTERNAL_ERROR, f"the jobs can't be read: {error}") from error
