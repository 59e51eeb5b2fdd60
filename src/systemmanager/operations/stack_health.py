"""Whether the containers of a stack do what they should, and what the first one that does not said."""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio

from systemmanager.diagnosis.diagnose import Log, diagnose
from systemmanager.diagnosis.facts import of_container
from systemmanager.errors import EngineRefused, GatewayError, NotFound
from systemmanager.operations.stack_changes import Member, members
from systemmanager.ports import ForeignText, Json, Result
from systemmanager.stacks import Stacks

SETTLE = 5.0
"""Seconds that containers without a health check must run, without a restart, to be taken for healthy."""

HEALTHY = 240.0
"""Seconds that a stack has to become healthy."""

READ_LINES, LAST_LINES = 500, 30


class ServiceState(Result):
    service: str
    container: str
    state: str
    health: str | None = None
    image: str
    commit: str | None = None
    restarts: int = 0
    problem: ForeignText | None = None


def state_of(member: Member, found: Json) -> ServiceState:
    """One container, from the engine's list and its inspection."""
    state = found["State"]
    return ServiceState(
        service=member.service,
        container=member.name,
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        image=found["Config"]["Image"],
        commit=member.commit or None,
        restarts=found.get("RestartCount", 0),
        problem=problem_of(found),
    )


def problem_of(found: Json, restarts: int = 0) -> str | None:
    """What is wrong with a container; None for one that runs, starts, or ended well and is not to run again."""
    state = found["State"]
    if state["Status"] == "restarting" or found.get("RestartCount", 0) > restarts:
        return f"dies again and again, last with exit status {state['ExitCode']}"
    if state["Status"] in ("exited", "dead"):
        policy = (found["HostConfig"].get("RestartPolicy") or {}).get("Name") or "no"
        if state["ExitCode"] or policy in ("always", "unless-stopped") or state.get("OOMKilled"):
            why = " (out of memory)" if state.get("OOMKilled") else f" ({state['Error']})" if state.get("Error") else ""
            return f"ended with exit status {state['ExitCode']}{why}"
    if (state.get("Health") or {}).get("Status") == "unhealthy":
        last = (state["Health"].get("Log") or [{}])[-1]
        return f"is unhealthy: {str(last.get('Output', '')).strip()[:300]}"
    if state["Status"] == "created" and state.get("Error"):
        return f"did not start: {state['Error']}"
    return None


def _is_well(found: Json, ran: float) -> bool:
    """Whether a container without a problem has proved itself."""
    state = found["State"]
    health = (state.get("Health") or {}).get("Status")
    if state["Status"] == "exited":
        return True
    if health not in (None, "none"):
        return bool(health == "healthy")
    return state["Status"] == "running" and ran >= SETTLE


async def prove(
    stacks: Stacks, stack: str, services: Sequence[str], before: Mapping[str, int], serving: Collection[str] = ()
) -> None:
    """Return when every service is well. Raises `EngineRefused` with the last words of the first one that is not.

    `before` are the restarts of containers that ran already; what is `serving` must not end, not even well.
    """
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        waiting = set(services)
        for member in members(await stacks.containers(), stack):
            try:
                found = await stacks.inspect(member.id)
            except NotFound:
                continue
            if problem := problem_of(found, before.get(member.id, 0)):
                raise await failed(stacks, member, found, problem)
            if found["State"]["Status"] == "exited" and member.service in serving:
                raise await failed(stacks, member, found, "ended with exit status 0, and is to go on")
            if _is_well(found, waited):
                waiting.discard(member.service)
            elif waited > HEALTHY:
                raise await failed(stacks, member, found, "did not become healthy in time")
        if not waiting and waited >= SETTLE:
            return
        if waited > HEALTHY:
            raise EngineRefused(f"service {min(waiting)!r} has no container that runs")
        await anyio.sleep(0.25)


async def failed(stacks: Stacks, member: Member, found: Json, problem: str) -> EngineRefused:
    """The failure of one service, with what it said last and the likeliest cause of it."""
    details: dict[str, Any] = {"service": member.service, "container": member.name, "problem": problem}
    with suppress(GatewayError):  # its log goes where the engine can't read it, or it is gone
        tail = await stacks.logs(member.id, READ_LINES, stamped=True)
        log = Log.of(member.name, tail.text, time.time(), of_container(found), stamped=True)
        diagnosis = await anyio.to_thread.run_sync(diagnose, log)
        if diagnosis.cause is not None:
            cause = diagnosis.cause
            said = {"cause": cause.cause.code, "why": cause.cause.sentence, "confidence": round(cause.confidence, 2)}
            details["likely_cause"] = {**said, **({"what": cause.what} if cause.what else {})}
        details["logs"] = "\n".join(line.message for line in log.lines[-LAST_LINES:])[-4000:]
    return EngineRefused(f"service {member.service!r} {problem.partition(':')[0]}", details=details)


async def culprit(stacks: Stacks, stack: str) -> EngineRefused | None:
    """The first service with a problem, after Compose itself has given up."""
    for member in members(await stacks.containers(), stack):
        with suppress(NotFound):
            found = await stacks.inspect(member.id)
            if problem := problem_of(found):
                return await failed(stacks, member, found, problem)
    return None
