"""The gateway about itself and its fleet."""

import asyncio
import re
import time
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from systemmanager.operation import Risk, operation
from systemmanager.params import Cursor, Limit
from systemmanager.ports import Fleet, Foreign, Page, Probe, Result

Name = Annotated[str, Field(max_length=500)]


class TargetRow(Result):
    id: str
    kind: str
    capabilities: list[str]
    tags: list[str] | None = None
    environment: str | None = None
    role: str | None = None
    fault: str | None = None


class Targets(Page):
    targets: list[TargetRow]


@operation(scope=None, risk=Risk.LOW)
async def list_targets(
    fleet: Fleet, selector: Name | None = None, limit: Limit = 100, cursor: Cursor | None = None
) -> Targets:
    """The targets that you may use, with kind, capabilities and tags. Call this first to learn ids and tags."""
    rows = fleet.targets(selector)
    start = int(cursor or 0)
    end = start + limit
    more = end < len(rows)
    shown = [TargetRow(**row) for row in rows[start:end]]
    return Targets(targets=shown, total=len(rows), truncated=more, next=str(end) if more else None)


class Verdict(Result):
    rule: str
    answer: str
    reason: str


class TargetAccess(Result):
    target: str
    answer: str = Field(description="allow, ask or deny")
    verdicts: list[Verdict]
    grant: list[str] | None = Field(default=None, description="Smallest changes that would allow it.")


class Explanation(Result):
    tool: str
    principal: str
    results: list[TargetAccess]


@operation(scope=None, risk=Risk.LOW)
async def explain_access(
    fleet: Fleet, tool: Name, target: Name = "local", arguments: dict[str, Any] | None = None
) -> Explanation:
    """Why a tool is or is not allowed for you on a target, rule by rule, and what is missing. Nothing runs."""
    return Explanation(**fleet.explain(tool, target, arguments or {}))


class AuditRecords(Result):
    """A page of them. They are not counted: for that the whole log would have to be read."""

    truncated: bool | None = Field(default=None, description="The list is cut; go on with `next`.")
    next: str | None = Field(default=None, description="Pass as `cursor` to go on.")
    records: list[dict[str, Annotated[Any, Foreign()]]]


@operation(scope="audit:read", risk=Risk.LOW)
async def query_audit(
    fleet: Fleet,
    call_id: Name | None = None,
    tool: Name | None = None,
    target: Name | None = None,
    subject: Name | None = None,
    phase: Name | None = None,
    since: Name | None = None,
    limit: Limit = 50,
    cursor: Cursor | None = None,
) -> AuditRecords:
    """What was done through the gateway, newest first. `since`: UTC, like 2026-01-31T08:00. Phases: intent, outcome,
    refused, event."""
    filters = {"call_id": call_id, "tool": tool, "target": target, "subject": subject, "phase": phase, "since": since}
    start = int(cursor or 0)
    # In a thread: a search that matches nothing reads the whole log.
    found = await asyncio.to_thread(lambda: list(islice(fleet.audit(**filters), start, start + limit + 1)))
    more = len(found) > limit
    return AuditRecords(
        records=[_told(one) for one in found[:limit]], truncated=more or None, next=str(start + limit) if more else None
    )


_FIRST = ("time", "phase", "code", "tool", "target", "subject")
_CHAIN = frozenset({"after", "hash"})


def _told(record: dict[str, Any]) -> dict[str, Any]:
    """A record for a reader: what counts first, and without the hashes, which verify the file and say nothing here."""
    return {name: record[name] for name in (*_FIRST, *record) if name in record and name not in _CHAIN}


class Health(Result):
    status: str = Field(description="ok or degraded")
    latency_ms: int | None = None
    version: str | None = None
    targets: int | None = None
    registry: dict[str, str] | None = None
    problems: dict[str, str] | None = None
    answered: dict[str, str] | None = Field(default=None, description="What answered on the target.")


async def gateway_health(fleet: Fleet) -> Health:
    """How the gateway itself is."""
    health = fleet.health()
    problems = health["problems"]
    return Health(
        status="degraded" if problems else "ok",
        version=health["version"],
        targets=health["targets"],
        registry=health["registry"],
        problems=problems or None,
    )


_READABLE = ("system:read", "container:read", "network:read", "file:read")


def _version(said: str) -> str:
    """What a target says of its version, in the few characters that versions have: it is not to be read as more."""
    return re.sub(r"[^\w .:/+()~@,=-]", "?", said[:64], flags=re.ASCII)


@operation(scope=None, capability=_READABLE, risk=Risk.LOW, timeout=15, without_targets=gateway_health)
async def health_check(probe: Probe) -> Health:
    """Without targets: how the gateway is. With targets: whether each can be reached with its credentials."""
    started = time.perf_counter()
    answered = {name: _version(said) for name, said in (await probe.probe()).items()}
    return Health(status="ok", latency_ms=round((time.perf_counter() - started) * 1000), answered=answered)
