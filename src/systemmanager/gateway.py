"""One call, from raw arguments to the Reply.

Fan-out, deadlines, limits, redaction and audit live here and nowhere else.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from systemmanager import shaping
from systemmanager.arguments import Shared, validate
from systemmanager.errors import (
    ApprovalRequired,
    CallError,
    DeadlineExceeded,
    Denied,
    GatewayError,
    InternalError,
    NotConfigured,
    TargetError,
    UnknownTarget,
    UnknownTool,
    Unsupported,
    did_you_mean,
)
from systemmanager.fleet import GATEWAY, FleetView, gateway_target
from systemmanager.journal import Call, Journal
from systemmanager.operation import CATALOGUE, Operation, Risk
from systemmanager.policy.gate import decide
from systemmanager.redaction import Redactor
from systemmanager.registry import Registry, matches
from systemmanager.request import Answer, Decision, Load, Permit, Principal, Request
from systemmanager.shaping import Reply, TargetReply
from systemmanager.target import EXECUTOR_PORTS, Target

Opener = Callable[[Permit, str], AbstractAsyncContextManager[Any]]
Progress = Callable[[int, int, str], Awaitable[None]]
Approve = Callable[[Sequence[Request]], Awaitable[str | None]]

GLOBAL_SLOTS = 256

log = structlog.get_logger("systemmanager")


@dataclass(slots=True)
class _Slots:
    limit: asyncio.Semaphore
    size: int
    running: int = 0


@dataclass
class Gateway:
    """The control plane: everything that a call goes through. A Gateway belongs to one event loop.

    `open` gives the port that a Permit is for; `root` says whether the gateway itself runs as root; `degraded` holds
    what is wrong with the gateway, by name, for `health_check`.
    """

    registry: Registry
    open: Opener
    journal: Journal
    root: bool = False
    degraded: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._slots: dict[str, _Slots] = {}
        self._global = asyncio.Semaphore(GLOBAL_SLOTS)
        self._recent: dict[tuple[str, Risk], deque[float]] = {}
        self._redactor = Redactor(self.registry.secrets)
        self.journal.degraded = self.degraded
        self.last_status: dict[str, dict[str, Any]] = {}

    def replace_registry(self, registry: Registry) -> None:
        """Put a new registry in place; calls in flight keep the one they began with."""
        self.registry = registry
        self._redactor = Redactor(registry.secrets)
        self.last_status = {id: seen for id, seen in self.last_status.items() if id in registry.targets}

    async def call(
        self,
        principal: Principal,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        approve: Approve | None = None,
    ) -> Reply:
        """Do one call and answer it. Never raises but for cancellation: every failure is in the Reply.

        `progress` is told after each target of many. `approve` is asked for the requests that need a person's yes and
        answers who said it, or None.
        """
        call_id, started = secrets.token_hex(8), time.perf_counter()
        with structlog.contextvars.bound_contextvars(call_id=call_id):
            try:
                call = await self._begin(call_id, principal, tool, arguments, started)
                reply = await self._run(call, progress, approve)
                return shaping.bound(reply, shaping.page_start(call.operation.arguments, call.arguments))
            except CallError as error:
                return shaping.fault(call_id, tool[:100], error)
            except Exception:
                log.exception("call failed by a defect", tool=tool[:100])
                return shaping.fault(call_id, tool[:100], InternalError("the gateway failed on this call"))

    # --- 1, 2: arguments and targets ----------------------------------------------------------------------------------

    async def _begin(
        self, call_id: str, principal: Principal, tool: str, raw: Mapping[str, Any], started: float
    ) -> Call:
        redactor, registry = self._redactor, self.registry
        audited = shaping.clip(redactor.value(dict(raw)))
        try:
            operation = CATALOGUE.get(tool)
            if operation is None:
                raise UnknownTool(f"there is no tool {tool[:100]!r}", hint=did_you_mean(tool[:100], CATALOGUE))
            arguments, shared = validate(operation, raw)
        except CallError as error:
            await self.journal.refused(call_id, principal, tool[:100], audited, error)
            raise
        return Call(call_id, principal, operation, arguments, shared, registry, redactor, started, audited)

    def chosen(self, operation: Operation, expressions: Sequence[str] | None) -> list[Target]:
        """The targets that a call means. Raises `UnknownTarget`."""
        if operation.selection == "none" or (operation.without_targets and expressions in (None, (GATEWAY,))):
            return [gateway_target()]
        return self.registry.select(expressions or ("local",))

    async def _run(self, call: Call, progress: Progress | None, approve: Approve | None) -> Reply:
        try:
            targets = self.chosen(call.operation, call.shared.targets)
        except CallError as error:
            await self.journal.refused(call.id, call.principal, call.operation.name, call.audited, error)
            raise
        requests = [self._request(call, target) for target in targets]
        self._count(call.principal, requests[0].access.risk)
        decisions = [decide(request) for request in requests]
        if approve is not None and not call.shared.dry_run:
            requests, decisions = await _ask(requests, decisions, approve)
        await self.journal.decided(call, requests, decisions)
        if call.shared.dry_run:
            results = [_preview(call, *pair) for pair in zip(requests, decisions, strict=True)]
            return Reply(call.id, call.operation.name, results)
        return Reply(call.id, call.operation.name, await self._fan_out(call, requests, decisions, progress))

    async def last_seen(self, principal: Principal, id: str) -> Reply:
        """What the gateway last saw of one target, judged and audited as `get_system_status` on it; nothing is asked of
        the target itself. Never raises."""
        call_id, started = secrets.token_hex(8), time.perf_counter()
        audited: dict[str, Any] = {"resource": f"last status of {id[:100]}"}
        operation = CATALOGUE["get_system_status"]
        try:
            target = self.registry.targets.get(id)
            if target is None:
                raise UnknownTarget(f"there is no target {id[:100]!r}", hint="list_targets shows what there is.")
            shared = Shared((id,), "json", False)
            call = Call(call_id, principal, operation, {}, shared, self.registry, self._redactor, started, audited)
            request = self._request(call, target)
            self._count(principal, request.access.risk)
            decision = decide(request)
            await self.journal.decided(call, [request], [decision])
            result = TargetReply(id, untrusted=operation.untrusted)
            if decision.permit is None:
                result.error = _refusal(decision).as_dict()
                return Reply(call_id, operation.name, [result])
            result.data = self.last_status.get(id, {"note": "not seen yet: call get_system_status"})
            await self.journal.outcome(call, request, result)
            return Reply(call_id, operation.name, [result])
        except CallError as error:
            if isinstance(error, UnknownTarget):
                await self.journal.refused(call_id, principal, operation.name, audited, error)
            return shaping.fault(call_id, operation.name, error)

    # --- 3: the policy question ---------------------------------------------------------------------------------------

    def decision(
        self, principal: Principal, operation: Operation, arguments: Mapping[str, Any], target: Target
    ) -> Decision:
        """What the gate would say now; for explanations, nothing is counted."""
        return decide(self._question("explain", principal, operation, arguments, target, self.registry))

    def _request(self, call: Call, target: Target) -> Request:
        question = self._question(call.id, call.principal, call.operation, call.arguments, target, call.registry)
        return replace(question, dry_run=True) if call.shared.dry_run else question

    def _question(
        self,
        call_id: str,
        principal: Principal,
        operation: Operation,
        arguments: Mapping[str, Any],
        target: Target,
        registry: Registry,
    ) -> Request:
        slots = self._slots.get(target.id)
        own = target.id == GATEWAY and target is gateway_target()
        return Request(
            call_id=call_id,
            principal=principal,
            operation=operation,
            access=operation.access_for(arguments),
            arguments=arguments,
            target=target,
            via=() if own else registry.route(target),
            selected=own or principal.targets is None or matches(principal.targets, target),
            load=Load(self._recent_calls(principal.subject), slots.running if slots else 0),
            root=self.root if target.executor == "local" else getattr(target.connection, "username", None) == "root",
        )

    def _recent_calls(self, subject: str) -> dict[Risk, int]:
        horizon, counts = self.clock() - 60, {}
        for risk in Risk:
            if times := self._recent.get((subject, risk)):
                while times and times[0] <= horizon:
                    times.popleft()
                counts[risk] = len(times)
        return counts

    def _count(self, principal: Principal, risk: Risk) -> None:
        key, now = (principal.subject, risk), self.clock()
        if key not in self._recent and len(self._recent) >= 10_000:
            self._recent = {kept: times for kept, times in self._recent.items() if times and times[-1] > now - 60}
        self._recent.setdefault(key, deque(maxlen=1000)).append(now)

    # --- 5, 6, 7, 8: deadline, slots, port, operation, redaction ------------------------------------------------------

    async def _fan_out(
        self, call: Call, requests: list[Request], decisions: list[Decision], progress: Progress | None
    ) -> list[TargetReply]:
        if len(requests) == 1:
            return [await self._on_target(call, requests[0], decisions[0])]
        done = 0

        async def one(request: Request, decision: Decision) -> TargetReply:
            nonlocal done
            result = await self._on_target(call, request, decision)
            done += 1
            if progress is not None:
                await progress(done, len(requests), request.target.id)
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*pair)) for pair in zip(requests, decisions, strict=True)]
        return [task.result() for task in tasks]

    async def _on_target(self, call: Call, request: Request, decision: Decision) -> TargetReply:
        result = TargetReply(request.target.id, untrusted=call.operation.untrusted)
        if decision.permit is None:
            result.error = _refusal(decision).as_dict()
            return result
        slots = self._slots_of(request.target)
        slots.running += 1
        try:
            result.data = await self._within_deadline(call, decision.permit, slots)
        except GatewayError as error:
            result.error = call.redactor.value(error.as_dict())
        except asyncio.CancelledError:
            result.error = {"code": "cancelled", "message": "the caller cancelled or went away"}
            raise
        except Exception:
            log.exception("operation failed by a defect", tool=call.operation.name, target=request.target.id)
            result.error = InternalError(f"{call.operation.name} failed on {request.target.id!r}").as_dict()
        finally:
            slots.running -= 1
            result.elapsed_ms = call.elapsed_ms
            await self.journal.outcome(call, request, result)
        self._remember(call, result)
        return result

    async def _within_deadline(self, call: Call, permit: Permit, slots: _Slots) -> dict[str, Any]:
        own = call.on_gateway
        if not own:
            _check_reachable(call, permit.target)
        function = (call.operation.without_targets if own else None) or call.operation.function
        opened = nullcontext(FleetView(self, call.principal)) if own else self.open(permit, call.operation.port)
        try:
            async with asyncio.timeout(permit.timeout), slots.limit, self._global, opened as port:
                answer = await function(port, **call.arguments)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{permit.target.id!r} did not finish within {permit.timeout:g} s",
                hint="Ask for less, or raise constraints.timeout of the target.",
            ) from error
        data: dict[str, Any] = call.redactor.value(answer.model_dump(mode="json", exclude_none=True))
        return data

    def _slots_of(self, target: Target) -> _Slots:
        size = target.constraints.concurrency
        slots = self._slots.get(target.id)
        if slots is None or (slots.size != size and not slots.running):
            slots = self._slots[target.id] = _Slots(asyncio.Semaphore(size), size)
        return slots

    def _remember(self, call: Call, result: TargetReply) -> None:
        """Each target's last status, for the resources."""
        if call.operation.name in ("get_system_status", "health_check"):
            seen = {"at": int(self.clock()), "tool": call.operation.name}
            self.last_status[result.target] = seen | result.as_dict()


def _check_reachable(call: Call, target: Target) -> None:
    if fault := call.registry.faults.get(target.id):
        raise NotConfigured(fault, hint="Set it and reload the gateway (SIGHUP).")
    if call.operation.port not in EXECUTOR_PORTS[target.executor]:
        raise Unsupported(
            f"{call.operation.name} needs {call.operation.port}, which {target.id!r} ({target.executor}) does not have",
            hint="list_targets shows the kinds.",
        )


async def _ask(
    requests: list[Request], decisions: list[Decision], approve: Approve
) -> tuple[list[Request], list[Decision]]:
    """Ask a person for what the gate answered `Ask`; the gate then decides again, on everything."""
    waiting = {
        request.target.id
        for request, decision in zip(requests, decisions, strict=True)
        if decision.answer is Answer.ASK
    }
    person = await approve([request for request in requests if request.target.id in waiting]) if waiting else None
    if person is None:
        return requests, decisions
    asked = [replace(one, approved_by=person) if one.target.id in waiting else one for one in requests]
    return asked, [decide(request) for request in asked]


def _preview(call: Call, request: Request, decision: Decision) -> TargetReply:
    """A dry run's answer: the decision; nothing runs."""
    data: dict[str, Any] = {"dry_run": True, "decision": decision.answer.value}
    if decision.permit is None:
        against = decision.against
        data |= {"code": against.code, "reason": against.reason}
        data |= {"fix": against.fix} if against.fix else {}
    return TargetReply(request.target.id, data, elapsed_ms=call.elapsed_ms)


def _refusal(decision: Decision) -> TargetError:
    against = decision.against
    if against.answer is Answer.ASK:
        return ApprovalRequired(against.reason, hint=against.fix)
    hint = f"It would need {against.fix}." if against.fix else None
    return Denied(against.reason, code=against.code, hint=hint, retryable=against.retryable)
