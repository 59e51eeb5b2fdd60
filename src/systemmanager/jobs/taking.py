"""Going on with the jobs of a process that is gone."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog

from systemmanager.errors import NotStarted
from systemmanager.gateway import Decided, Gateway, judged
from systemmanager.jobs.job import Job
from systemmanager.jobs.life import principal_of
from systemmanager.jobs.store import JobRow
from systemmanager.journal import Call, Entry
from systemmanager.request import Decision, Request
from systemmanager.rollout import carried_out
from systemmanager.shaping import Reply, TargetReply
from systemmanager.telling import Told

log = structlog.get_logger("systemmanager")


@asynccontextmanager
async def working(gateway: Gateway) -> AsyncIterator[None]:
    """Calls may be jobs while this lasts, and what processes that are gone have left is taken up."""
    jobs = gateway.jobs
    assert jobs is not None
    jobs.runs = True
    watching = asyncio.create_task(jobs.watch())
    try:
        await jobs.take_up(partial(take_up, gateway))
        gateway.degraded.pop("jobs", None)
    except (sqlite3.Error, OSError) as error:
        gateway.degraded["jobs"] = f"earlier jobs can't be taken up: {error}"
        log.error("earlier jobs can't be taken up", error=str(error))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await jobs.leave()


async def take_up(gateway: Gateway, row: JobRow, job: Job) -> Reply:
    """Decide a job anew, for whoever asked and with the yes that was given, and do what is left of it.

    Targets that have ended are not touched; where the gate says no now, a command that runs on by itself is left to its
    end and nothing more is begun.
    """
    entry = Entry(row.id, principal_of(row), row.tool, dict(row.shown))

    async def decided() -> Decided:
        call = gateway.begin(entry, row.tool, row.asked["arguments"], time.perf_counter())
        left = [id for id in row.targets if id not in job.results]
        targets = gateway.chosen(call.principal, call.operation, left, call.registry)
        asked = gateway.requests(call.principal, call.operation, call.arguments, targets, call.registry, call=call)
        requests = [replace(request, approvers=tuple(row.asked["approvers"])) for request in asked]
        return replace(call, job=job), requests, [judged(request) for request in requests]

    async def results(call: Call, requests: list[Request], decisions: list[Decision]) -> list[TargetReply]:
        before = list(job.results.values())
        failures = sum(one.error is not None for one in before)
        if call.shared.strategy is not None and failures > call.shared.strategy.max_failures:
            why = NotStarted(f"{failures} targets had failed before the gateway stopped", hint="Mend those first.")
            return [*before, *(TargetReply(one.target.id, error=why.as_dict()) for one in requests)]
        return before + await carried_out(gateway, call, requests, decisions, Told(None, also=job.tell))

    return await gateway.answer(entry, decided, results)
