"""Going on with the jobs of a process that is gone."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog

from systemmanager.errors import NotStarted
from systemmanager.gateway import Decided, Gateway, judged
from systemmanager.jobs.job import INTERRUPTED, Job
from systemmanager.jobs.life import principal_of
from systemmanager.jobs.store import JobRow
from systemmanager.journal import Call, Entry
from systemmanager.operation import AGAIN, CATALOGUE
from systemmanager.policy.verdicts import against
from systemmanager.redeciding import ended, still_held
from systemmanager.request import Decision, Request
from systemmanager.rollout import carried_out, unwell_of
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

    Targets that have ended are not touched, nor are those where work had begun that can't be done twice: they are told
    as interrupted. Where the gate says no now, a command that runs on by itself is left to its end and nothing more is
    begun. With a token that was revoked only what had begun is brought to its end.
    """
    await _cut_off(gateway, row, job)
    left = [id for id in row.targets if id not in job.results]
    if not left:
        return Reply(row.id, row.tool, list(job.results.values()))
    entry = Entry(row.id, still_held(principal_of(row), gateway.policy), row.tool, dict(row.shown))

    async def decided() -> Decided:
        call = gateway.begin(entry, row.tool, row.asked["arguments"], time.perf_counter())
        targets = gateway.chosen(call.principal, call.operation, left, call.registry)
        asked = gateway.requests(call.principal, call.operation, call.arguments, targets, call.registry, call=call)
        requests = [replace(request, approvers=tuple(row.asked["approvers"])) for request in asked]
        decisions = [judged(request) for request in requests]
        if verdict := ended(gateway, call.principal):
            begun = await job.at_work_before(left)
            decisions = [
                decision if decision.permit is None or request.target.id in begun else against(decision, verdict)
                for request, decision in zip(requests, decisions, strict=True)
            ]
        return replace(call, job=job), requests, decisions

    async def results(call: Call, requests: list[Request], decisions: list[Decision]) -> list[TargetReply]:
        before, strategy = list(job.results.values()), call.shared.strategy
        if strategy is not None:
            failures = await _failures(gateway, call, before)
            if len(failures) > strategy.max_failures:
                named = ", ".join(f"{id} ({why})" for id, why in list(failures.items())[:5])
                why = NotStarted(f"not started: when the gateway was stopped: {named}", hint="Look at those first.")
                return [*before, *(TargetReply(one.target.id, error=why.as_dict()) for one in requests)]
            rest = strategy.model_copy(update={"max_failures": strategy.max_failures - len(failures)})
            call = replace(call, shared=replace(call.shared, strategy=rest))
        return before + await carried_out(gateway, call, requests, decisions, Told(None, also=job.tell))

    return await gateway.answer(entry, decided, results)


async def _cut_off(gateway: Gateway, row: JobRow, job: Job) -> None:
    """Tell of the targets where work had begun that can't be done twice."""
    if CATALOGUE[row.tool].job in AGAIN:
        return
    cut = await job.cut_short()
    for id in cut:
        await job.ended_on(TargetReply(id, error={"code": "interrupted", "message": INTERRUPTED, "retryable": False}))
    if cut:
        await gateway.journal.event("interrupted", {"job": row.id, "tool": row.tool, "targets": cut}, row.subject)


async def _failures(gateway: Gateway, call: Call, before: Sequence[TargetReply]) -> dict[str, str]:
    """Which of the targets that have ended failed, or are not well now: the gateway may have been stopped before it
    could ask."""
    failed = {one.target: str(one.error["code"]) for one in before if one.error is not None}
    well = [one.target for one in before if one.error is None]
    if well and call.shared.strategy is not None and call.shared.strategy.health:
        failed |= await unwell_of(gateway, call, well)
    return failed
