"""The desk: where calls that need a person's yes are asked about, answered, and let through once."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import structlog

from systemmanager.approvals.answers import NoAnswer
from systemmanager.approvals.people import listed
from systemmanager.approvals.question import Question, question_of
from systemmanager.approvals.store import ApprovalStore, Asked
from systemmanager.errors import ApprovalRefused, ApprovalRequired, GatewayError, NotFound, Unauthenticated
from systemmanager.journal import Call, Journal
from systemmanager.operation import Risk
from systemmanager.policy.demands import Approvals
from systemmanager.policy.verdicts import held
from systemmanager.request import Answer, Decision, Request, Verdict
from systemmanager.still import while_known

Judge = Callable[[Request], Decision]
Approve = Callable[[Sequence[Request]], Awaitable[str]]
Elicit = Callable[[Asked], Coroutine[Any, Any, bool | None]]
Tell = Callable[[float, str], Awaitable[None]]
Moved = Callable[[Call, Sequence[Request], str | None], Awaitable[Verdict | None]]
Settled = tuple[list[Request], list[Decision]]


if TYPE_CHECKING:
    from systemmanager.approvals.webhook import Webhook

LOOK = 0.5
"""Seconds between two looks at a request that a call waits for."""

TELL_EVERY = 5.0
"""Seconds between two progress messages to whoever waits."""

MOST_WAITING = 64
MOST_WAITING_EACH = 8
"""Calls that may wait for people, of all and of one subject; others are answered at once."""

log = structlog.get_logger("systemmanager")


async def settle(
    desk: "Desk | None",
    call: Call,
    requests: list[Request],
    decisions: list[Decision],
    judge: Judge,
    approve: Approve | None,
    elicit: Elicit | None,
    moved: Moved,
) -> Settled:
    """What becomes of a call: with a yes it goes on, else it is held and told how to get one.

    `approve` asks whoever sits at the gateway's terminal; when it raises `ApprovalRefused` for their no, or
    `ApprovalRequired` where nobody sits there, nobody else is asked. A call that does not ask, or does only a dry run,
    is left as it is. `moved` says what is not as it was when the plan was made that the person was shown.
    """
    if call.shared.dry_run or not _asks(decisions):
        return requests, decisions
    if approve is not None:
        asked = [one for one, said in zip(requests, decisions, strict=True) if said.answer is Answer.ASK]
        try:
            if not (person := await approve(asked)):
                raise ApprovalRefused("nobody said yes")
        except ApprovalRefused as error:
            return requests, held(decisions, _refused(error))
        except ApprovalRequired as error:
            nobody = Verdict("approval", Answer.ASK, error.message, error.code, error.hint)
            return requests, held(decisions, nobody)
        if otherwise := await moved(call, requests, requests[0].plan_id):
            return requests, held(decisions, otherwise)
        requests, decisions = _approved(requests, decisions, (person,), judge)
    if desk is None or not _asks(decisions):
        return requests, decisions
    return await desk.settle(call, requests, decisions, judge, elicit, moved)


def _asks(decisions: Sequence[Decision]) -> bool:
    return any(decision.answer is Answer.ASK for decision in decisions)


def _approved(
    requests: Sequence[Request], decisions: Sequence[Decision], people: tuple[str, ...], judge: Judge, id: str = ""
) -> Settled:
    """The gate's word on a call that people said yes to. It decides on everything again: a yes is no right."""
    pairs = zip(requests, decisions, strict=True)
    asked = [
        replace(one, approvers=people, approval=id) if decision.answer is Answer.ASK else one for one, decision in pairs
    ]
    return asked, [judge(request) for request in asked]


@dataclass
class Desk:
    """All that a gateway knows of approvals. Its methods raise `ApprovalRefused`, and `NotFound` for an unknown id."""

    store: ApprovalStore
    journal: Journal
    webhook: "Webhook | None" = None
    rules: Callable[[], Approvals] = Approvals
    _promised: set[str] = field(default_factory=set)
    _waiting: list[str] = field(default_factory=list)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    async def settle(
        self,
        call: Call,
        requests: list[Request],
        decisions: list[Decision],
        judge: Judge,
        elicit: Elicit | None,
        moved: Moved,
    ) -> Settled:
        """What becomes of a call that needs a yes."""
        given = False
        try:
            question = question_of(call, requests)
            if call.shared.approval_id is None:
                asked, given = await self._ask(call, question, elicit)
            else:
                if otherwise := await self._outdated(call, requests, question, moved):
                    return requests, held(decisions, otherwise)
                asked = await self._redeem(call, call.shared.approval_id, question)
        except Unauthenticated:
            raise
        except GatewayError as error:
            return requests, held(decisions, _refused(error))
        except (sqlite3.Error, OSError) as error:
            log.error("approvals can't be read or written", error=str(error))
            broken = ApprovalRefused("approvals can't be read or written now", retryable=True)
            return requests, held(decisions, _refused(broken))
        if asked.state == "used":
            return _approved(requests, decisions, asked.people, judge, asked.id)
        if asked.state == "denied":
            return requests, held(decisions, _refused(ApprovalRefused(f"{asked.refuser} said no to this call")))
        reason = next(decision.against.reason for decision in decisions if decision.answer is Answer.ASK)
        return requests, held(decisions, self._required(asked, reason, given=given))

    async def _ask(self, call: Call, question: Question, elicit: Elicit | None) -> tuple[Asked, bool]:
        """The request for a call, and whether it was approved just now, while the channels were tried."""
        rules = self.rules()
        asked, made = await asyncio.to_thread(
            self.store.ask,
            call.principal.subject,
            call.operation.name,
            question.shown,
            question.digest,
            needed=question.needed,
            lifetime=rules.lifetime,
        )
        if made:
            log.info("a call waits for an approval", approval_id=asked.id, tool=asked.tool, subject=asked.subject)
            await self._event("approval ask", asked, asked.subject, call_id=call.id)
        before = asked.state
        for channel in rules.channels:
            if asked.state != "pending":
                break
            if channel == "webhook" and self.webhook is not None and asked.id not in self._promised:
                asked = await self._tell(self.webhook, asked)
            elif channel == "elicitation" and elicit is not None:
                asked = await self._elicit(call, elicit, asked)
        return asked, before == "pending" and asked.state == "approved"

    async def _elicit(self, call: Call, elicit: Elicit, asked: Asked) -> Asked:
        """Ask whoever sits at the client. They are on the side of who asks: never one of two people."""
        if asked.needed > 1 or not self.rules().elicits(Risk(asked.question["risk"])):
            return asked
        said = await while_known(call.still, elicit(asked))
        if said is None:
            return await self.get(asked.id)
        try:
            return await self.answer(asked.id, f"elicited:{asked.subject}", said, "elicitation", digest=asked.digest)
        except ApprovalRefused:  # written down already; somebody else may have answered meanwhile
            return await self.get(asked.id)

    async def _tell(self, webhook: "Webhook", asked: Asked) -> Asked:
        """Ask the webhook. It is asked again by the next call, as long as it has neither answered nor promised to."""
        try:
            said = await webhook.tell(asked)
            if said is None:
                self._promise(asked.id)
                return asked
            return await self.answer(asked.id, said.person, said.approved, "webhook", digest=said.digest)
        except NoAnswer as error:
            log.warning("the approval webhook gave no answer", approval_id=asked.id, why=str(error))
            await self.journal.event("approval webhook", {"id": asked.id, "why": str(error)})
        except ApprovalRefused:
            pass  # written down already; somebody else may have answered meanwhile
        return await self.get(asked.id)

    def _promise(self, id: str) -> None:
        """Remember that the webhook has it."""
        if len(self._promised) >= 10_000:
            self._promised.clear()
        self._promised.add(id)

    async def _outdated(
        self, call: Call, requests: Sequence[Request], question: Question, moved: Moved
    ) -> Verdict | None:
        """What has moved since the plan that people were shown; None when all is as it was, or it is another call.

        The approval is not used up: it counts when the world is again as it was.
        """
        with suppress(NotFound):
            asked = await self.get(call.shared.approval_id or "")
            plan = asked.question.get("plan")
            if asked.digest == question.digest or not plan or asked.state not in ("pending", "approved"):
                return None
            if question_of(call, requests, plan["plan_id"]).digest == asked.digest:
                return await moved(call, requests, plan["plan_id"])
        return None

    async def _redeem(self, call: Call, id: str, question: Question) -> Asked:
        """The used-up approval, or the pending one. Every other is refused."""
        subject = call.principal.subject
        try:
            asked = await asyncio.to_thread(self.store.redeem, id, subject, question.digest)
        except (ApprovalRefused, NotFound) as error:
            await self.journal.event("approval refused", {"id": id[:40], "why": error.message}, subject)
            raise
        if asked.state == "used":
            await self._event("approval use", asked, subject, call_id=call.id)
        return asked

    async def give_back(self, call: Call, requests: Sequence[Request]) -> None:
        """Let an approval be used again whose call will never run, because its intent could not be written. Never
        raises. Until then it counts as used, so that nobody else can have used it meanwhile."""
        for id in {request.approval for request in requests if request.approval}:
            try:
                await asyncio.to_thread(self.store.give_back, id)
            except (sqlite3.Error, OSError) as error:
                log.error("an approval is used up although nothing ran", approval_id=id, error=str(error))
                continue
            details = {"id": id, "tool": call.operation.name, "why": "the audit log could not be written; nothing ran"}
            self.journal.owe("approval given back", {**details, "call_id": call.id}, call.principal.subject)

    def _required(self, asked: Asked, reason: str, *, given: bool) -> Verdict:
        left = max(0, round(asked.expires - self.store.clock()))
        details: dict[str, Any] = {
            "approval_id": asked.id,
            "state": asked.state,
            "expires_in": left,
            "needed": asked.needed,
        }
        if plan := asked.question.get("plan"):
            details["plan_id"] = plan["plan_id"]
        if given:
            details["given"] = True
        if asked.state == "approved":
            how = f"It is approved: call again, unchanged, with approval_id={asked.id}"
        else:
            who = "the person" if asked.needed == 1 else f"{asked.needed} people"
            ways = {"operator"} if self.webhook is None else {"operator", "webhook"}
            details["channels"] = [one for one in self.rules().channels if one in ways]
            by_hand = "operator" in details["channels"]
            at = " (you, at another terminal of this machine, or who else may)" if asked.by_own_hand else ""
            how = (
                f"Tell {who}{at}: systemmanager approvals approve {asked.id}. Then" if by_hand else "Once it is given,"
            )
            how = f"{how} call again, unchanged, with approval_id={asked.id}"
        return Verdict("approval", Answer.ASK, reason, "approval_required", how, details=details)

    # --- The side of those who answer -----------------------------------------------------------------------------

    async def awaited(self, call: Call, decisions: Sequence[Decision], tell: Tell) -> dict[str, Any] | None:
        """The arguments with which to make a call again, once a person has answered while it waited."""
        all_details = (one.against.details or {} for one in decisions if one.answer is Answer.ASK)
        details = next((one for one in all_details if "approval_id" in one), None)
        if details is None:
            return None
        id = str(details["approval_id"])
        if not details.get("given"):
            waits = call.shared.approval_wait
            if not waits or not await while_known(call.still, self._wait(call, id, tell)):
                return None
        return {"approval_id": id, "approval_wait": 0}

    async def _wait(self, call: Call, id: str, tell: Tell) -> bool:
        """Wait for the answers to a request, as long as the call wants to: whether there are enough, or a no.

        What another process of this gateway writes is seen within `LOOK` seconds.
        """
        mine = sum(subject == call.principal.subject for subject in self._waiting)
        if mine >= MOST_WAITING_EACH or len(self._waiting) >= MOST_WAITING:
            return False
        self._waiting.append(call.principal.subject)
        started, seconds = time.monotonic(), call.shared.approval_wait
        told = started
        try:
            while (asked := await self.get(id)).state == "pending":
                waited = time.monotonic() - started
                if waited >= seconds:
                    return False
                if time.monotonic() - told >= TELL_EVERY or told == started:
                    told = time.monotonic()
                    await tell(waited / (seconds + 1), f"waiting for approval {id}, {seconds - waited:.0f} s left")
                bell = self._bell
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(LOOK, seconds - waited)):
                        await bell.wait()
            return asked.state in ("approved", "denied")
        finally:
            self._waiting.remove(call.principal.subject)

    async def answer(self, id: str, person: str, approved: bool, channel: str, *, digest: str | None = None) -> Asked:
        """Take one person's answer, and write it down."""
        try:
            self._may_answer(person, channel)
            asked = await asyncio.to_thread(self.store.answer, id, person, approved, channel, digest=digest)
        except ApprovalRefused as error:
            details = {"id": id[:40], "channel": channel, "approved": approved, "why": error.message}
            await self.journal.event("approval answer refused", details, person)
            raise
        self._bell.set()
        self._bell = asyncio.Event()
        await self._event("approval yes" if approved else "approval no", asked, person, channel=channel)
        return asked

    def _may_answer(self, person: str, channel: str) -> None:
        rules = self.rules()
        if channel not in rules.channels:
            raise ApprovalRefused(f"policy.yaml lets nobody answer by {channel}")
        if channel != "elicitation" and rules.approvers is not None and not listed(person, rules.approvers):
            raise ApprovalRefused(f"{person!r} is not among the approvers of policy.yaml")

    async def get(self, id: str) -> Asked:
        return await asyncio.to_thread(self.store.get, id)

    async def all(self) -> list[Asked]:
        return await asyncio.to_thread(self.store.all)

    async def _event(self, name: str, asked: Asked, subject: str, **more: Any) -> None:
        details: dict[str, Any] = {
            "id": asked.id,
            "tool": asked.tool,
            "asked_by": asked.subject,
            "digest": asked.digest,
        }
        details |= {"targets": asked.question.get("targets"), "state": asked.state, **more}
        if plan := asked.question.get("plan"):
            details["plan_id"] = plan["plan_id"]
        await self.journal.event(name, details, subject)


def _refused(error: GatewayError) -> Verdict:
    return Verdict("approval", Answer.DENY, error.message, "approval_refused", error.hint, error.retryable)
