"""What was permitted is done here, on each target at once: deadline, slots, port, operation, redaction.

One target that fails, hangs or is frozen costs the others nothing: each has its own answer.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import structlog

from systemmanager.errors import DeadlineExceeded, Denied, GatewayError, InternalError
from systemmanager.fencing import fence, fence_error, new_nonce, present
from systemmanager.fleet import gateway_target
from systemmanager.freezing import Freezer, Run
from systemmanager.journal import Call, Journal, being_cancelled
from systemmanager.load import AllSlots, Readers, Shares, Slots, room_aside
from systemmanager.refusal import preview, refusal
from systemmanager.request import Decision, Permit, Principal, Request
from systemmanager.shaping import TargetReply
from systemmanager.telling import Told

Opener = Callable[[Permit, str], AbstractAsyncContextManager[Any]]

GLOBAL_SLOTS = 256

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
        if call.shared.dry_run:
            return [preview(call, *pair) for pair in pairs]
        if len(pairs) == 1:
            return [await self._on_target(call, *pairs[0])]
        told.total = len(pairs)

        async def one(request: Request, decision: Decision) -> TargetReply:
            result = await self._on_target(call, request, decision)
            await told.one_more(request.target.id)
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*pair)) for pair in pairs]
        return [task.result() for task in tasks]

    async def _on_target(self, call: Call, request: Request, decision: Decision) -> TargetReply:
        result = TargetReply(request.target.id)
        if decision.permit is None:
            result.error = call.redactor.value(refusal(decision).as_dict())
            return result
        slots = self.slots.of(request.target)
        slots.running += 1
        try:
            with self._freezer.running(request) as run:
                result.data = await self._within_deadline(call, run, decision.permit, slots)
            result.untrusted = present(result.data, call.operation.foreign)
        except GatewayError as error:
            result.error = call.redactor.value(error.as_dict())
            result.untrusted = fence_error(result.error)
        except asyncio.CancelledError:
            result.error = {"code": "cancelled", "message": "the caller cancelled or went away", "retryable": True}
            if being_cancelled():
                raise
            # Not this call was cancelled but something that the operation waited for.
            result.error = self._defect(call, request)
        except Exception:
            result.error = self._defect(call, request)
        finally:
            slots.running -= 1
            result.elapsed_ms = call.elapsed_ms
            await self._journal.outcome(call, request, result)
        self._remember(call, request, result)
        if result.untrusted:
            self._readers.add(call.principal.subject)
        return result

    def _defect(self, call: Call, request: Request) -> dict[str, Any]:
        """What is told of an exception that no operation may raise: its text stays in the gateway's log."""
        log.exception("operation failed by a defect", tool=call.operation.name, target=request.target.id)
        return InternalError(f"{call.operation.name} failed on {request.target.id!r}").as_dict()

    async def _within_deadline(self, call: Call, run: Run, permit: Permit, slots: Slots) -> dict[str, Any]:
        function, opened, target = call.operation.function, None, run.request.target
        if target is gateway_target():
            function = call.operation.without_targets or function
            opened = nullcontext(self._fleet(call.principal))
        shared = self.shares.hold(call.principal.subject)
        try:
            async with asyncio.timeout(permit.timeout) as run.deadline, slots.limit, shared:
                async with opened or self._open(permit, call.operation.port) as port:
                    answer = await function(port, **call.arguments)
        except TimeoutError as error:
            if run.deadline is None or not run.deadline.expired():
                raise
            if run.stopped:
                raise Denied(run.stopped, code="frozen") from error
            raise DeadlineExceeded(
                f"{target.id!r} did not finish within {permit.timeout:g} s",
                hint="Ask for less, or raise constraints.timeout of the target.",
            ) from error
        data: dict[str, Any] = call.redactor.value(answer.model_dump(mode="json", exclude_none=True))
        if call.operation.fences is not None:
            # Last of all: a mask that runs to the end of a text must not take the fence with it.
            data = fence(data, call.operation.fences, new_nonce())
        return data

    def _remember(self, call: Call, request: Request, result: TargetReply) -> None:
        """Each target's last status, for the resources."""
        if call.operation.name in ("get_system_status", "health_check") and request.target is not gateway_target():
            seen = {"at": int(self._clock()), "tool": call.operation.name}
            self.last_status[result.target] = seen | result.as_dict()
