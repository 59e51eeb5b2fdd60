"""The life of jobs: begun by a call, waited for, ended, cancelled, left to the next process and taken up by it.

Who asked for a job may go: a cancelled or lost request ends its waiting, not the work. `job_cancel` ends that.
"""

import asyncio
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from systemmanager.approvals.store import digest_of
from systemmanager.errors import IdempotencyConflict, JobsUnavailable, TooManyCalls
from systemmanager.jobs.job import Job
from systemmanager.jobs.store import JobRow, JobStore
from systemmanager.journal import Call
from systemmanager.operation import AGAIN, CATALOGUE
from systemmanager.request import Decision, Grant, Principal, Request
from systemmanager.shaping import Reply, TargetReply
from systemmanager.telling import Told

MOST_JOBS = 32
"""Running jobs of one subject."""

TELL_EVERY = 2.0
LOOK_EVERY = 1.0
STOP_WITHIN = 7.0
"""Seconds between progress messages, between two looks at what is to end, and for all jobs to end when we stop."""

log = structlog.get_logger("systemmanager")


class Known(Exception):
    """The same was asked before under this idempotency key; `id` is its job, and `answer` its answer."""

    def __init__(self, id: str, answer: Callable[[Told], Awaitable[Reply]]) -> None:
        super().__init__(id)
        self.id, self.answer = id, answer


class Jobs:
    """All jobs of this process. `runs` is True while it may have its own: it looks at those of others without, too."""

    def __init__(self, store: JobStore, owners: Path) -> None:
        self.store, self.runs = store, False
        self._owners, self._owner = owners, secrets.token_hex(8)
        self._running: dict[str, Job] = {}
        self._claimed: dict[tuple[str, str], tuple[str, asyncio.Event]] = {}
        self._lock: int | None = None

    # --- before it begins ---------------------------------------------------------------------------------------------

    async def claim(self, call: Call, targets: Collection[str]) -> None:
        """Hold the call's idempotency key until `release`. Raises `Known`, and `IdempotencyConflict` when the same key
        was given with another call."""
        key, subject = call.shared.idempotency_key, call.principal.subject
        if key is None or not self.runs:
            return
        while (other := self._claimed.get((subject, key))) is not None:
            if other[0] == call.id:
                return  # decided for the second time, after a person's yes
            await other[1].wait()
        self._claimed[subject, key] = call.id, asyncio.Event()
        try:
            found = await asyncio.to_thread(self.store.of_key, subject, key)
        except sqlite3.Error as error:
            raise JobsUnavailable(f"the jobs can't be read: {error}") from error
        if found is not None:
            self._same(found, digest(call, targets), call)

    def _same(self, found: JobRow, asked: str, call: Call) -> None:
        if found.digest != asked:
            raise IdempotencyConflict(
                f"idempotency_key {found.key!r} stands for another call of {found.tool}, job {found.id}",
                hint="A new call needs a new key.",
            )
        raise Known(found.id, lambda told: self._again(found, call.shared.wait, told))

    def release(self, call_id: str) -> None:
        """Let go of the key that a call held."""
        for held, (owner, event) in tuple(self._claimed.items()):
            if owner == call_id:
                del self._claimed[held]
                event.set()

    async def begin(
        self, call: Call, requests: Sequence[Request], decisions: Sequence[Decision], raw: Mapping[str, Any]
    ) -> Call:
        """Write a job down before anything of it is done; the call then belongs to it. One that can't be a job stays
        as it is. Raises `JobsUnavailable`, `TooManyCalls` and `Known`."""
        permitted = any(decision.permit is not None for decision in decisions)
        runs = self.runs and (permitted or call.shared.dry_run)
        lasts = (call.operation.job or call.shared.strategy) and not call.shared.dry_run
        if not (runs and (lasts or call.shared.always_job)):
            return call
        subject, targets = call.principal.subject, tuple(request.target.id for request in requests)
        if sum(job.subject == subject for job in self._running.values()) >= MOST_JOBS:
            raise TooManyCalls(f"{MOST_JOBS} jobs of {subject!r} are running, and no more are taken at a time")
        now = self.store.clock()
        people = next((request.approvers for request in requests if request.approvers), ())
        asked = {
            "principal": _principal(call.principal),
            "arguments": dict(call.applies.arguments if call.applies else raw),
            "approvers": list(people),
        }
        row = JobRow(
            call.id, subject, call.operation.name, call.entry.arguments, targets, digest(call, targets),
            call.shared.idempotency_key, asked, self._owner, "running", now, None, 0, "", False, now,
        )  # fmt: skip
        try:
            self._hold()
            found = await asyncio.to_thread(self.store.begin, row)
        except (sqlite3.Error, OSError) as error:
            raise JobsUnavailable(f"the jobs can't be written: {error}") from error
        if found is not row and row.key is not None:
            self._same(found, row.digest, call)
        return replace(call, job=self._made(row))

    def _made(self, row: JobRow) -> Job:
        job = self._running[row.id] = Job(self.store, row.id, row.tool, row.subject, row.targets)
        return job

    # --- while it runs ------------------------------------------------------------------------------------------------

    async def follow(self, call: Call, work: Coroutine[Any, Any, Reply], told: Told) -> Reply:
        """Do the work; that of a job goes on when it has not ended after as long as the call waits."""
        if call.job is None:
            return await work
        job, told.also = call.job, call.job.tell
        await self._start(job, work)
        try:
            return await self._waited(job, call.shared.wait, told)
        finally:
            told.progress = None

    async def _waited(self, job: Job, seconds: float, told: Told) -> Reply:
        assert job.task is not None
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not job.task.done() and (left := began + seconds - loop.time()) > 0:
            await asyncio.wait({job.task}, timeout=min(left, TELL_EVERY))
            if not job.task.done() and len(job.targets) == 1:
                await told.say((loop.time() - began) / (seconds + 1), job.said or "running")
        return job.task.result() if job.task.done() else job.so_far()

    async def _start(self, job: Job, work: Coroutine[Any, Any, Reply]) -> None:
        job.task = asyncio.create_task(self._life(job, work))
        await asyncio.sleep(0)  # a task that is cancelled before its first step would never see it

    async def _life(self, job: Job, work: Awaitable[Reply]) -> Reply:
        try:
            reply = await work
            state = "done" if reply.ok else "failed"
            if any(one.error is not None and one.error["code"] == "interrupted" for one in reply.results):
                state = "interrupted"
        except asyncio.CancelledError:
            if job.leaving:
                await job.flush()
                return job.so_far()
            state = "cancelled" if job.stopped else "interrupted"
            reply = job.cut_off()
        finally:
            self._running.pop(job.id, None)
        for result in reply.results:
            ill = "unhealthy" in (result.data or {})  # that was seen after it had ended
            if ill or result.target not in job.results:
                await job.ended_on(result)
        if reply.error is not None:
            for id in job.targets:
                await job.ended_on(TargetReply(id, error=reply.error))
        await job.end(state)
        return reply

    async def _again(self, row: JobRow, wait: float, told: Told) -> Reply:
        job = self._running.get(row.id)
        if job is not None and job.task is not None:
            return await self._waited(job, wait, told)
        return await self.reply_of(row)

    async def reply_of(self, row: JobRow) -> Reply:
        """The answer of a job as it stands on the disk. Raises `sqlite3.Error`."""
        results = await asyncio.to_thread(self.store.results, row.id)
        replies = [TargetReply.of(results[target]) for target in row.targets if target in results]
        about = None if row.ended else {"id": row.id, "state": row.state, "done": row.done, "of": len(row.targets)}
        return Reply(row.id, row.tool, replies, job=about)

    async def ended(self, id: str) -> JobRow | None:
        """Return when a job has ended, whichever process runs it; None for one that is gone. Raises `sqlite3.Error`."""
        while (row := await asyncio.to_thread(self.store.one, id)) is not None and row.ended is None:
            job = self._running.get(id)
            if job is not None and job.task is not None:
                await asyncio.wait({job.task}, timeout=LOOK_EVERY)
            else:
                await asyncio.sleep(LOOK_EVERY)
        return row

    async def watch(self) -> None:
        """Bring to the disk what is heard, and end what somebody wants to end, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for job in tuple(self._running.values()):
                await job.flush()
            if self._running:
                with suppress(sqlite3.Error):
                    for id in await asyncio.to_thread(self.store.stopped, self._owner):
                        self._end(id)

    async def cancel(self, id: str) -> None:
        """End a job, whichever process runs it. Raises `sqlite3.Error`."""
        await asyncio.to_thread(self.store.stop, id)
        job = self._running.get(id)
        self._end(id)
        if job is not None and job.task is not None:
            await asyncio.wait({job.task}, timeout=STOP_WITHIN)

    def _end(self, id: str) -> None:
        job = self._running.get(id)
        if job is not None and job.task is not None and not job.stopped:
            job.stopped = True
            job.task.cancel()

    # --- from one process to the next ---------------------------------------------------------------------------------

    async def leave(self) -> None:
        """This process ends: what runs on targets by itself goes on there, what can be done again is left to the next
        process, and what had begun otherwise is cut off."""
        for job in tuple(self._running.values()):
            job.leaving = CATALOGUE[job.tool].job in AGAIN or len(job.targets) > 1
            if job.task is not None:
                job.task.cancel()
        if tasks := {job.task for job in self._running.values() if job.task is not None}:
            await asyncio.wait(tasks, timeout=STOP_WITHIN)
        if self._lock is not None:
            (self._owners / self._owner).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def handed_over(self) -> set[str]:
        """Calls that a later process goes on with, when the one that runs them is gone."""
        try:
            return {row.id for row in self.store.all(state="running") if _goes_on(row)}
        except sqlite3.Error as error:
            log.error("the jobs can't be read", error=str(error))
            return set()

    async def take_up(self, go_on: Callable[[JobRow, Job], Coroutine[Any, Any, Reply]]) -> None:
        """Go on with the jobs of processes that are gone. Raises `sqlite3.Error` and `OSError`."""
        for row in await asyncio.to_thread(self.store.all, None, "running"):
            if row.owner == self._owner or not self._is_gone(row.owner):
                continue
            self._hold()
            if not await asyncio.to_thread(self.store.adopt, row.id, row.owner, self._owner):
                continue
            job = self._made(row)
            results = await asyncio.to_thread(self.store.results, row.id)
            job.results = {target: TargetReply.of(reply) for target, reply in results.items()}
            log.warning("a job is taken up", job=row.id, tool=row.tool, goes_on=_goes_on(row))
            work = go_on(row, job) if _goes_on(row) else _cut_off()
            await self._start(job, work)

    def _hold(self) -> None:
        """Be known to be alive, from the first job on: by a locked file. Raises `OSError`."""
        if self._lock is not None:
            return
        self._owners.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(self._owners / self._owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _is_gone(self, owner: str) -> bool:
        """Whether the process that had this name is gone; its file is cleared away then."""
        path = self._owners / owner
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


async def _cut_off() -> Reply:
    """The work of a job that nobody can go on with: its process has ended it already."""
    raise asyncio.CancelledError


def _goes_on(row: JobRow) -> bool:
    return row.tool in CATALOGUE


def digest(call: Call, targets: Collection[str]) -> str:
    """What a call asks for, whoever asks and however long they wait: the same under one key."""
    return digest_of({"tool": call.operation.name, "arguments": call.arguments, "targets": sorted(targets)})


def _principal(principal: Principal) -> dict[str, Any]:
    grants = [{"scopes": sorted(grant.scopes), "targets": grant.targets} for grant in principal.grants]
    return {
        "subject": principal.subject, "kind": principal.kind, "grants": grants, "verified_by": principal.verified_by,
        "groups": list(principal.groups), "tags": list(principal.tags), "credential": principal.credential,
    }  # fmt: skip


def principal_of(row: JobRow) -> Principal:
    """Who asked for a job, as they were when they did."""
    kept = row.asked["principal"]
    grants = tuple(Grant(frozenset(one["scopes"]), one["targets"]) for one in kept["grants"])
    return Principal(
        kept["subject"],
        kept["kind"],
        grants,
        kept["verified_by"],
        tuple(kept["groups"]),
        tuple(kept["tags"]),
        kept.get("credential"),
    )
