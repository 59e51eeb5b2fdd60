"""What the audit log is told about a call, and what it means when it can't be told."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from systemmanager import __version__
from systemmanager.arguments import Shared
from systemmanager.audit.log import AuditLog
from systemmanager.audit.record import Phase, Record
from systemmanager.errors import AuditUnavailable
from systemmanager.operation import Operation, Risk
from systemmanager.policyfile import Policy
from systemmanager.redaction import Redactor
from systemmanager.registry import Registry
from systemmanager.request import Decision, Principal, Request
from systemmanager.shaping import TargetReply
from systemmanager.tally import Tally

EVERY = 1.0
"""Seconds between two looks at what is due."""

MOST_OF_A_TEXT = 300
"""Characters of a text in an event; an address or a reason is short."""

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the log knows of a call before it is checked; `tool` and `arguments` are redacted and clipped."""

    call_id: str
    principal: Principal
    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What belongs to one call while it runs; a reload does not change it."""

    entry: Entry
    operation: Operation
    arguments: dict[str, Any]
    shared: Shared
    registry: Registry
    policy: Policy
    redactor: Redactor
    started: float

    @property
    def id(self) -> str:
        return self.entry.call_id

    @property
    def principal(self) -> Principal:
        return self.entry.principal

    @property
    def elapsed_ms(self) -> int:
        return round((time.perf_counter() - self.started) * 1000)


@dataclass
class Journal:
    """Writes the Records of calls. Low-risk reads go on without it; nothing else does."""

    log: AuditLog
    clock: Callable[[], float] = time.time
    degraded: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._credentials: Tally[tuple[str, str]] = Tally(self.clock, each=5, overall=60)

    async def decided(self, call: Call, requests: Sequence[Request], decisions: Sequence[Decision]) -> None:
        """The intents, and what was refused, before any effect. Raises `AuditUnavailable`."""
        access = requests[0].access
        records = [self._decision(call, *pair) for pair in zip(requests, decisions, strict=True)]
        try:
            await self.log.append(records, durable=access.mutates or access.risk in (Risk.HIGH, Risk.CRITICAL))
        except OSError as error:
            self._failed(error)
            if access.mutates or access.risk is not Risk.LOW:
                raise AuditUnavailable(f"the audit log can't be written ({self.log.error})") from error
        else:
            self.degraded.pop("audit", None)

    def _decision(self, call: Call, request: Request, decision: Decision) -> Record:
        arguments = call.entry.arguments
        if decision.permit is not None:
            return self._record(call, request, "intent", arguments=arguments)
        against = decision.against
        reason = call.redactor.text(against.reason)[:300]
        return self._record(call, request, "refused", arguments=arguments, code=against.code, reason=reason)

    async def outcome(self, call: Call, request: Request, result: TargetReply) -> None:
        """How one target ended. Never raises: the effect is done, the log and `health_check` say what is missing."""
        code, reason = (result.error["code"], result.error["message"][:300]) if result.error else ("ok", None)
        record = self._record(call, request, "outcome", code=code, reason=reason, elapsed_ms=result.elapsed_ms)
        await self._try(record, durable=request.access.mutates)

    async def refused(self, entry: Entry, code: str, reason: str) -> None:
        """A call that is at fault as a whole. Never raises: nothing ran."""
        record = Record(
            "refused",
            entry.call_id,
            entry.tool,
            entry.principal.subject,
            entry.principal.kind,
            arguments=entry.arguments,
            code=code,
            reason=reason[:300],
            time=self.clock(),
        )
        await self._try(record, durable=False)

    async def event(self, name: str, details: dict[str, Any], subject: str = "gateway") -> None:
        """Something that is no call: start, stop, reload. Never raises."""
        await self._try(Record("event", "", name, subject, arguments=details, time=self.clock()), durable=True)

    def refused_credential(self, peer: str, why: str) -> None:
        """A credential that was missing or did not count, from the peer's address. Never raises, never waits.

        A flood of them does not fill the disk: the first few are told one by one, the others as one number a minute.
        """
        key = (peer[:MOST_OF_A_TEXT], why[:MOST_OF_A_TEXT])
        if self._credentials.tell(key) and not self._note("credential refused", {"peer": key[0], "why": key[1]}):
            self._credentials.keep(key)

    @asynccontextmanager
    async def open(self, **details: Any) -> AsyncIterator[None]:
        """Start and stop of the gateway are events; in between what is due once a second is done."""
        await self.event("start", {**details, "version": __version__, "pid": os.getpid()})
        tending = asyncio.create_task(self._tending())
        try:
            yield
        finally:
            tending.cancel()
            await asyncio.wait([tending])
            self.tend(stopping=True)
            await self.event("stop", {"pid": os.getpid()})

    async def _tending(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            self.tend()

    def tend(self, *, stopping: bool = False) -> None:
        """What is due once a second, and when the gateway stops: numbers of what was not told one by one."""
        for untold in self._credentials.untold(now=stopping):
            peer, why = untold.key or ("many", "various")
            self._note("credential refused", {"peer": peer, "why": why, "times": untold.times})

    def _note(self, name: str, details: dict[str, Any]) -> bool:
        """Write an event without waiting for anything; whether it was written."""
        try:
            self.log.note(Record("event", "", name, "gateway", arguments=details, time=self.clock()))
        except OSError as error:
            self._failed(error)
            return False
        return True

    async def _try(self, record: Record, *, durable: bool) -> None:
        try:
            await self.log.append([record], durable=durable)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.degraded["audit"] = f"the audit log can't be written: {self.log.error}"
        log.error("the audit log can't be written", error=str(error))

    def _record(self, call: Call, request: Request, phase: Phase, **fields: Any) -> Record:
        return Record(
            phase,
            call.id,
            call.operation.name,
            call.principal.subject,
            call.principal.kind,
            request.target.id,
            risk=request.access.risk,
            approved_by=request.approved_by,
            dry_run=request.dry_run,
            registry=call.registry.version,
            policy=call.policy.version,
            time=self.clock(),
            **fields,
        )
