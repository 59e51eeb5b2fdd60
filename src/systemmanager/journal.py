"""What the audit log is told about a call, and what it means when it can't be told."""

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from systemmanager import __version__
from systemmanager.arguments import Shared
from systemmanager.audit.chain import Limits
from systemmanager.audit.log import AuditLog, NotDurable
from systemmanager.audit.reading import newest_format
from systemmanager.audit.record import FORMAT, Phase, Record, timestamp
from systemmanager.audit.signing import Signer, fault, new_key
from systemmanager.errors import AuditUnavailable, ConfigError, Problem, TooManyCalls
from systemmanager.fencing import new_nonce
from systemmanager.operation import Operation, Risk
from systemmanager.plans.store import Kept
from systemmanager.policyfile import Policy
from systemmanager.redaction import Redactor
from systemmanager.registry import Registry
from systemmanager.request import Decision, Principal, Request
from systemmanager.settings import Settings, State
from systemmanager.shaping import TargetReply
from systemmanager.still import Still
from systemmanager.tally import Tally

if TYPE_CHECKING:
    from systemmanager.jobs.job import Job

EVERY = 1.0
"""Seconds between two looks at what is due."""

LATE_WITHIN = 6.0
"""Seconds that a cancelled call waits for its last record to be on the disk."""

MOST_OWED = 10_000
"""Outcomes that are kept while they can't be written."""

NOT_RUN = "nothing ran: the call ended before it came to this target"

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
    """What belongs to one call while it runs; a reload does not change it.

    `applies` is the plan to be carried out, `nonce` that of the fences in its answer. `still` names the principal
    again, with the rights of that moment, when the call has waited; it raises `Unauthenticated` for a credential that
    has ended.
    """

    entry: Entry
    operation: Operation
    arguments: dict[str, Any]
    shared: Shared
    registry: Registry
    policy: Policy
    redactor: Redactor
    started: float
    applies: Kept | None = None
    nonce: str = field(default_factory=new_nonce)
    job: "Job | None" = None
    still: Still | None = None
    wave: int | None = None

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
    """Writes the Records of calls. Low-risk reads go on without it; nothing else does.

    `handed_over` names the calls that another process goes on with after a crash.
    """

    log: AuditLog
    clock: Callable[[], float] = time.time
    degraded: dict[str, str] = field(default_factory=dict)
    handed_over: Callable[[], Collection[str]] = tuple

    def __post_init__(self) -> None:
        self._credentials: Tally[tuple[str, str]] = Tally(self.clock, each=5, overall=60)
        self._rates: Tally[str] = Tally(self.clock, each=20, overall=200)
        self._open: dict[str, set[str]] = {}
        self._owed: deque[Record] = deque(maxlen=MOST_OWED)
        self._gap: dict[str, Any] | None = None
        self._looked_back = False
        self._late: set[asyncio.Task[None]] = set()

    async def decided(self, call: Call, requests: Sequence[Request], decisions: Sequence[Decision]) -> None:
        """The intents, and what was refused, before any effect. Raises `AuditUnavailable`.

        `settle` must follow, however the call ends.
        """
        access = requests[0].access
        pairs = list(zip(requests, decisions, strict=True))
        records = [self._decision(call, *pair) for pair in pairs if self._is_told(*pair)]
        if not call.shared.dry_run:
            self._open[call.id] = {request.target.id for request, decision in pairs if decision.permit is not None}
        try:
            await self.log.append(records, durable=access.mutates or access.risk is not Risk.LOW)
        except OSError as error:
            self._failed(error)
            if not isinstance(error, NotDurable):
                self._open.pop(call.id, None)
            if access.mutates or access.risk is not Risk.LOW:
                raise AuditUnavailable(f"the audit log can't be written ({self.log.error})") from error
        else:
            self._succeeded()

    def _is_told(self, request: Request, decision: Decision) -> bool:
        """Whether a decision has a record of its own: those that a flood is refused by soon have one number."""
        limited = decision.permit is None and decision.against.code == "rate_limited"
        return not limited or self._rates.tell(request.principal.subject)

    def settle(self, call: Call, requests: Sequence[Request]) -> None:
        """Close the intents of a call that ended before it came to its targets. Never raises, never waits."""
        for id in self._open.pop(call.id, ()):
            request = next(request for request in requests if request.target.id == id)
            record = self._record(call, request, "outcome", code="not_run", reason=NOT_RUN)
            self._owed.append(record)
            with suppress(OSError):
                self.log.note(record)
                self._owed.pop()

    def _decision(self, call: Call, request: Request, decision: Decision) -> Record:
        arguments = call.entry.arguments
        if decision.permit is not None:
            return self._record(call, request, "intent", arguments=arguments)
        against = decision.against
        reason = call.redactor.text(against.reason)[:300]
        return self._record(call, request, "refused", arguments=arguments, code=against.code, reason=reason)

    async def outcome(self, call: Call, request: Request, result: TargetReply) -> None:
        """How one target ended. Never raises: the effect is done, the log and `health_check` say what is missing.

        What can't be written now is written when that is possible again.
        """
        code, reason = (result.error["code"], result.error["message"][:300]) if result.error else ("ok", None)
        record = self._record(call, request, "outcome", code=code, reason=reason, elapsed_ms=result.elapsed_ms)
        intended = request.target.id in self._open.get(call.id, ())
        if intended:
            self._open[call.id].discard(request.target.id)
        await self._try(record, durable=request.access.mutates, owed=intended)

    async def refused(self, entry: Entry, code: str, reason: str) -> None:
        """A call that is at fault as a whole. Never raises: nothing ran. A flood becomes a few numbers."""
        if code == TooManyCalls.code and not self._rates.tell(entry.principal.subject):
            return
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

    def owe(self, name: str, details: dict[str, Any], subject: str) -> None:
        """An event that is written when that is possible again. Never raises, never waits."""
        self._owed.append(Record("event", "", name, subject, arguments=details, time=self.clock()))

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
            await self.event("stop", {"pid": os.getpid()})
            await self.tend(stopping=True)

    async def _tending(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self.tend()

    async def tend(self, *, stopping: bool = False) -> None:
        """What is due once a second, and when the gateway stops. Never raises.

        Numbers of what was not told one by one, what could not be written when it happened, checkpoints.
        """
        for refused in self._credentials.untold(now=stopping):
            peer, why = refused.key or ("many", "various")
            self._note("credential refused", {"peer": peer, "why": why, "times": refused.times})
        for limited in self._rates.untold(now=stopping):
            self._note("rate limited", {"subject": limited.key or "many", "times": limited.times})
        try:
            self._look_back()
            await self._catch_up()
            await self.log.tend()
        except OSError as error:
            self._failed(error)
        for name in ("audit segments", "audit witness"):
            self.degraded.pop(name, None)
        self.degraded.update(self.log.troubles)

    def begin(self) -> None:
        """This process may have effects: close what processes that are gone left open. Never raises."""
        self.log.begin_run()
        try:
            self._look_back()
        except OSError as error:
            self._failed(error)

    def _look_back(self) -> None:
        if not self._looked_back:
            closed = self.log.close_ended(self.handed_over())
            self._looked_back = True
            if closed:
                log.warning("calls were cut off by a crash", intents=closed, outcome="unknown")

    async def _catch_up(self) -> None:
        """Write what could not be written, and that there was a gap."""
        late = list(self._owed)
        if self._gap is not None:
            late.append(Record("event", "", "audit resumed", "gateway", arguments=self._gap, time=self.clock()))
        if late:
            await self.log.append(late, durable=True)
            for record in late:
                with suppress(ValueError):
                    self._owed.remove(record)
            self._gap = None
            self._succeeded()

    def _note(self, name: str, details: dict[str, Any]) -> bool:
        """Write an event without waiting for anything; whether it was written."""
        try:
            self.log.note(Record("event", "", name, "gateway", arguments=details, time=self.clock()))
        except OSError as error:
            self._failed(error)
            return False
        return True

    async def _try(self, record: Record, *, durable: bool, owed: bool = False) -> None:
        if not durable and not being_cancelled():
            await self._write(record, durable, owed)
            return
        # A record that is begun is brought to the disk, also when whoever waits for it has gone.
        writing = asyncio.ensure_future(self._write(record, durable, owed))
        self._late.add(writing)
        writing.add_done_callback(self._late.discard)
        await _to_its_end(writing)

    async def _write(self, record: Record, durable: bool, owed: bool) -> None:
        try:
            await self.log.append([record], durable=durable)
        except OSError as error:
            if owed:
                self._owed.append(record)
            self._failed(error)
        else:
            self._succeeded()

    def _failed(self, error: OSError) -> None:
        said = f"the audit log can't be written: {self.log.error}"
        if self.degraded.get("audit") != said:
            log.error("the audit log can't be written", error=str(error))
        self.degraded["audit"] = said
        self._gap = self._gap or {"error": self.log.error, "since": timestamp(self.clock())}

    def _succeeded(self) -> None:
        if "audit" in self.degraded:
            del self.degraded["audit"]
            log.info("the audit log is written again")

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
            plan_id=request.plan_id,
            registry=call.registry.version,
            policy=call.policy.version,
            time=self.clock(),
            **fields,
        )


def being_cancelled() -> bool:
    """Whether the running task is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _to_its_end(task: asyncio.Task[None]) -> None:
    """Wait for a task although this one is cancelled, for `LATE_WITHIN` seconds; then be cancelled."""
    cancelled, ends = None, time.monotonic() + LATE_WITHIN
    with anyio.CancelScope(shield=True):
        while not task.done() and (left := ends - time.monotonic()) > 0:
            try:
                await asyncio.wait((task,), timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled


def audit_log(settings: Settings, state: State) -> AuditLog:
    """The audit log that the settings name, signed with the key in the state folder. Raises `ConfigError`."""
    limits = Limits(
        settings.audit_segment_bytes,
        settings.audit_segment_hours * 3600,
        settings.audit_checkpoint_records,
        settings.audit_checkpoint_seconds,
    )
    if (newer := newest_format(state.audit_log)) > FORMAT:
        why = f"is of format {newer}, of a newer version of the gateway, and left alone: install that, or move it"
        raise ConfigError([Problem(str(state.audit_log), why)])
    if never := _never(state.audit_log):
        raise ConfigError([Problem(str(state.audit_log), f"the audit log can't be made there: {never.strerror}")])
    return AuditLog(state.audit_log, signer=signer_of(state), witness=settings.audit_witness, limits=limits)


_FOR_NOW = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


def _never(path: Path) -> OSError | None:
    """Why no file can ever be made at a path. What only time or room mends is told as long as it lasts."""
    if os.path.lexists(path):
        return None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        return None if error.errno in _FOR_NOW else error
    return None


def signer_of(state: State) -> Signer:
    """The key of the checkpoints, made on first use. Raises `ConfigError`."""
    return Signer.of(state.kept("audit_key", new_key, fault))
