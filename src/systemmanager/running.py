"""What was permitted is done here, on each target at once: deadline, slots, port, operation, redaction.

One target that fails, hangs or is frozen costs the others nothing: each has its own answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any

import structlog

from systemmanager.errors import DeadlineExceeded, Denied, GatewayError, InternalError, Unauthenticated
from systemmanager.fencing import Places, fence, fence_error, places, present
from systemmanager.fleet import gateway_target
from systemmanager.freezing import Freezer, Run
from systemmanager.jobs.job import INTERRUPTED, Job
from systemmanager.journal import Call, Journal, being_cancelled
from systemmanager.load import AllSlots, Readers, Shares, Slots, room_aside
from systemmanager.operation import AGAIN
from systemmanager.plan import Plan
from systemmanager.policy.gate import decide
from systemmanager.ports import Result
from systemmanager.refusal import failure, refusal
from systemmanager.request import Decision, Permit, Principal, Request
from systemmanager.shaping import TargetReply
from systemmanager.still import taken_back
from systemmanager.telling import Told

Opener = Callable[[Permit, str], AbstractAsyncContextManager[Any]]

Work = Callable[..., Awaitable[Result]]

GLOBAL_SLOTS = 256

ASKED_AGAIN_AFTER = 1.0
"""Seconds after which a call that has waited for its turn is decided again."""

log = structlog.get_logger("systemmanager")


class Runner:
    """Runs decided requests and answers for each. `fleet` is the port on which the gateway answers about itself."""

    def __init__(
        self,
        open: Opener,
        journal: Journal,
        freezer: Freezer,
        readers: Readers,
        fleet: Callable[[Principal], Any],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open, self._journal, self._freezer, self._readers = open, journal, freezer, readers
        self._fleet, self._clock = fleet, clock
        self.slots, self.shares = AllSlots(), Shares(GLOBAL_SLOTS, room_aside())
        self.last_status: dict[str, dict[str, Any]] = {}

    def keep(self, targets: Iterable[str]) -> None:
        """Forget what is known of all other targets."""
        kept = set(targets)
        self.last_status = {id: seen for id, seen in self.last_status.items() if id in kept}
        self.slots.keep(kept)

    async def results(
        self, call: Call, requests: list[Request], decisions: list[Decision], told: Told
    ) -> list[TargetReply]:
        pairs = list(zip(requests, decisions, strict=True))
        if len(pairs) == 1 and told.total == 1:
            return [await self._on_target(call, *pairs[0])]
        told.total = max(told.total, len(pairs))

        async def one(request: Request, decision: Decision) -> TargetReply:
            result = await self._on_target(call, request, decision)
            await told.one_more(request.target.id)
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*pair)) for pair in pairs]
        return [task.result() for task in tasks]

    async def _on_target(self, call: Call, request: Request, decision: Decision) -> TargetReply:
        result = TargetReply(request.target.id, wave=call.wave)
        if decision.permit is None:
            result.error = call.redactor.value(refusal(decision).as_dict())
            return result
        try:
            operation = call.operation
            own = operation.without_targets if request.target is gateway_target() else None
            work, where = own or operation.function, (operation.foreign, operation.fences)
            if call.job is not None:
                work = self._followed(call, call.job, work, result, *where)
            await self._attempt(call, request, decision.permit, result, work, *where)
        finally:
            result.elapsed_ms = call.elapsed_ms
            await self._journal.outcome(call, request, result)
        if call.job is not None:
            await call.job.ended_on(result)
        self._remember(call, request, result)
        return result

    def _followed(self, call: Call, job: Job, work: Work, result: TargetReply, foreign: Places, fences: Places) -> Work:
        """The work as part of a job: what it answers is on the disk before the target forgets what it did."""

        async def followed(port: Any, **arguments: Any) -> Result:
            job.at_work.add(result.target)
            lasts = call.operation.job == "steps"
            if lasts:
                port.following = await job.following(result.target)
            elif call.operation.job not in AGAIN:
                await job.begins_on(result.target)
            answer = await work(port, **arguments)
            if lasts:
                self._tell(call, answer, result, foreign, fences)
                await job.ended_on(result)
            if lasts and call.operation.port == "Shell":
                await port.forget()
            return answer

        return followed

    async def rehearse(self, call: Call, request: Request, permit: Permit) -> tuple[TargetReply, Plan | None]:
        """What the operation would do on one target, as it is told and as it is."""
        assert call.operation.plan is not None
        result = TargetReply(request.target.id)
        where = (places(Plan, fenced=False), places(Plan, fenced=True))
        plan = await self._attempt(call, request, permit, result, call.operation.plan, *where)
        result.elapsed_ms = call.elapsed_ms
        (result.data or {}).pop("preconditions", None)
        return result, plan if isinstance(plan, Plan) else None

    async def _attempt(
        self, call: Call, request: Request, permit: Permit, result: TargetReply, work: Work, *where: Places
    ) -> Result | None:
        """What `work` answers within slots and deadline, told in `result`; None when `result` says why not.

        `where` are the places of an answer that others wrote, and of those the ones to be fenced.
        """
        slots = self.slots.of(request.target)
        slots.running += 1
        try:
            with self._freezer.running(request) as run:
                answer = await self._within_deadline(call, run, permit, slots, work)
            self._tell(call, answer, result, *where)
            return answer
        except GatewayError as error:
            result.error = call.redactor.value(failure(error, request).as_dict())
            result.untrusted = fence_error(result.error, call.nonce)
        except asyncio.CancelledError:
            result.error = _ended_by(call)
            if being_cancelled():
                raise
            # Not this call was cancelled but something that the operation waited for.
            result.error = self._defect(call, request)
        except Exception:
            result.error = self._defect(call, request)
        finally:
            slots.running -= 1
            if result.untrusted:
                self._readers.add(call.principal.subject)
        return None

    def _tell(self, call: Call, answer: Result, result: TargetReply, foreign: Places, fences: Places) -> None:
        """Put an answer into a reply: redacted, fenced last of all, as a mask that runs to the end of a text must not
        take the fence with it."""
        data: dict[str, Any] = call.redactor.value(answer.model_dump(mode="json", exclude_none=True))
        result.data = data if fences is None else fence(data, fences, call.nonce)
        result.untrusted = present(result.data, foreign)

    def _defect(self, call: Call, request: Request) -> dict[str, Any]:
        """What is told of an exception that no operation may raise: its text stays in the gateway's log."""
        log.exception("operation failed by a defect", tool=call.operation.name, target=request.target.id)
        return InternalError(f"{call.operation.name} failed on {request.target.id!r}").as_dict()

    async def _within_deadline(self, call: Call, run: Run, permit: Permit, slots: Slots, work: Work) -> Result:
        operation, target = call.operation, run.request.target
        fleet = nullcontext(self._fleet(call.principal)) if target is gateway_target() else None
        given = {"shown": call.redactor.text} if operation.compares and work is operation.function else {}
        shared, since = self.shares.hold(call.principal.subject), time.monotonic()
        try:
            async with asyncio.timeout(permit.timeout) as run.deadline, slots.limit, shared:
                if time.monotonic() - since >= ASKED_AGAIN_AFTER:
                    await _still_allowed(call, run.request)
                async with fleet or self._open(permit, operation.port) as port:
                    return await work(port, **call.arguments, **given)
        except TimeoutError as error:
            if run.deadline is None or not run.deadline.expired():
                raise
            if run.stopped:
                raise Denied(run.stopped, code="frozen") from error
            raise DeadlineExceeded(
                f"{target.id!r} did not finish within {permit.timeout:g} s",
                hint="Ask for less, or raise constraints.timeout of the target.",
            ) from error

    def _remember(self, call: Call, request: Request, result: TargetReply) -> None:
        """Each target's last status, for the resources."""
        if call.operation.name in ("get_system_status", "health_check") and request.target is not gateway_target():
            seen = {"at": int(self._clock()), "tool": call.operation.name}
            self.last_status[result.target] = seen | result.as_dict()


async def _still_allowed(call: Call, request: Request) -> None:
    """Decide a call again that has waited for its turn: by the credential and the grants of now. Raises `Denied`, and
    `Unauthenticated`. A job outlives a credential that expires; what it has begun somewhere goes on in any case, and
    is ended by `job_cancel` or a freeze."""
    if call.still is None:
        return
    try:
        now = await call.still()
    except Unauthenticated as error:
        if call.job is None or taken_back(error):
            raise
        return
    registry, id = call.registry, request.target.id
    granted = now.grants if request.own else tuple(one for one in now.grants if id in registry.granted(one))
    decision = decide(replace(request, principal=now, granted=granted))
    if decision.permit is None:
        raise refusal(decision)


def _ended_by(call: Call) -> dict[str, Any]:
    """What is told of work that was cancelled."""
    if call.job is not None and call.job.leaving and call.operation.job not in AGAIN:
        return {"code": "interrupted", "message": INTERRUPTED}
    if call.job is not None and call.job.leaving:
        return {"code": "handed_over", "message": "this gateway stops; the next one goes on with the job"}
    if call.job is not None:
        return {"code": "cancelled", "message": "the job was ended", "retryable": True}
    return {"code": "cancelled", "message": "the caller cancelled or went away", "retryable": True}
