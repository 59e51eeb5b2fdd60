"""Jobs as a principal sees them: their own; the operator sees all."""

import asyncio
import sqlite3
from typing import Any

from systemmanager.audit.record import timestamp
from systemmanager.errors import JobsUnavailable, NotFound
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobRow
from systemmanager.ports import Json
from systemmanager.redaction import Redactor
from systemmanager.request import Principal
from systemmanager.shaping import MAX_REPLY_BYTES, bound

ROOM = 32 * 1024
"""Bytes of an answer that are for what is told of a job beside its results."""


class SeenJobs:
    """Raises `NotFound` for a job of somebody else as for one that there is not."""

    def __init__(self, jobs: Jobs | None, principal: Principal, redactor: Redactor) -> None:
        self._jobs, self._redactor = jobs, redactor
        self._subject = None if principal.kind == "operator" else principal.subject

    async def all(self, state: str | None) -> list[Json]:
        if self._jobs is None:
            return []
        return [_shown(row) for row in await self._try(self._jobs.store.all, self._subject, state)]

    async def one(self, id: str) -> Json:
        jobs, row = await self._mine(id)
        try:
            reply = bound(await jobs.reply_of(row), most=MAX_REPLY_BYTES - ROOM)
        except sqlite3.Error as error:
            raise JobsUnavailable(f"the jobs can't be read: {error}") from error
        kinds = {"results": False, "untrusted_results": True}
        told: Json = {
            name: [one.as_dict() for one in reply.results if one.untrusted is untrusted] or None
            for name, untrusted in kinds.items()
        }
        if len(reply.results) > 1:
            told["summary"] = reply.summary()
        return {**_shown(row), "arguments": dict(row.shown), **told}

    async def output(self, id: str, target: str | None) -> Json:
        """All that was said on one target; while the job runs, up to the last whole line: half a secret is not
        recognised as one."""
        jobs, row = await self._mine(id)
        on = target or row.targets[0]
        if on not in row.targets:
            raise NotFound(f"job {id} has no target {on[:100]!r}", hint=f"It has: {', '.join(row.targets[:20])}.")
        text = await self._try(jobs.store.output, id, on)
        if row.state == "running":
            text = text[: text.rfind("\n") + 1]
        shown = await asyncio.to_thread(self._redactor.text, text)
        return {"job_id": id, "state": row.state, "target": on, "text": shown}

    async def cancel(self, id: str) -> Json:
        jobs, row = await self._mine(id)
        if row.state == "running":
            try:
                await jobs.cancel(id)
            except sqlite3.Error as error:
                raise JobsUnavailable(f"the jobs can't be written: {error}") from error
        return await self.one(id)

    async def _mine(self, id: str) -> tuple[Jobs, JobRow]:
        row = None if self._jobs is None else await self._try(self._jobs.store.one, id)
        if self._jobs is None or row is None or self._subject not in (None, row.subject):
            raise NotFound(f"there is no job {id!r}", hint="list_jobs shows yours.")
        return self._jobs, row

    async def _try(self, read: Any, *values: Any) -> Any:
        try:
            return await asyncio.to_thread(read, *values)
        except sqlite3.Error as error:
            raise JobsUnavailable(f"the jobs can't be read: {error}") from error


def _shown(row: JobRow) -> Json:
    seen: Json = {
        "job_id": row.id, "tool": row.tool, "state": row.state, "by": row.subject, "targets": len(row.targets),
        "ended_on": row.done, "started": timestamp(row.started),
    }  # fmt: skip
    if row.ended is not None:
        seen["ended"] = timestamp(row.ended)
    if row.said and row.state == "running":
        seen["said"] = row.said
    return seen
