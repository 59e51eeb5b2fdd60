"""One call, from raw arguments to the Reply.

What a call is and whether it may run is decided here; running.py does it.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from systemmanager import shaping
from systemmanager.advising import Model, advise
from systemmanager.approvals.desk import Approve, Desk, Elicit, settle
from systemmanager.arguments import Later, Shared, validate
from systemmanager.errors import (
    AuditUnavailable,
    CallError,
    GatewayError,
    InternalError,
    UnknownTarget,
    UnknownTool,
    did_you_mean,
)
from systemmanager.fleet import GATEWAY, FleetView, gateway_target
from systemmanager.freezing import Freezer
from systemmanager.jobs.life import Jobs, Known
from systemmanager.journal import Call, Entry, Journal
from systemmanager.load import MOST_CALLS, InFlight, Readers, Recent
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.plans.planner import APPLY, Planner
from systemmanager.plans.store import PlanStore
from systemmanager.policy.gate import decide
from systemmanager.policy.verdicts import held
from systemmanager.policyfile import BUILTIN, Policy
from systemmanager.redaction import Redactor
from systemmanager.refusal import refusal
from systemmanager.registry import Registry
from systemmanager.request import NOT_FROZEN, Answer, Decision, Load, Principal, Request, Verdict
from systemmanager.rollout import carried_out
from systemmanager.running import Opener, Runner
from systemmanager.shaping import Reply, TargetReply
from systemmanager.still import Still
from systemmanager.target import Target
from systemmanager.telling import Progress, Told
from systemmanager.together import together

Decided = tuple[Call, list[Request], list[Decision]]
Results = Callable[[Call, list[Request], list[Decision]], Awaitable[list[TargetReply]]]

T = TypeVar("T")

log = structlog.get_logger("systemmanager")


@dataclass
class Gateway:
    """The control plane: everything that a call goes through. A Gateway belongs to one event loop.

    `policy` may be replaced at any time. `open` gives the port that a Permit is for; `root` says whether the gateway
    itself runs as root; `weakened` are the required parts of its sandbox that are missing; `degraded` holds what is
    wrong with the gateway, by name, for `health_check`; `secrets` are its own, beside the registry's; `models` may put
    into words and order what was found, the first that is there; without a `desk` only `approve` gets a person's yes,
    without `plans` none can be carried out by its id, and without `jobs` every call ends with its caller. `revoked`:
    whether a token of the gateway's own was taken back.
    """

    registry: Registry
    open: Opener
    journal: Journal
    policy: Policy = BUILTIN
    desk: Desk | None = None
    plans: PlanStore | None = None
    jobs: Jobs | None = None
    freezer: Freezer = field(default_factory=Freezer)
    root: bool = False
    weakened: tuple[str, ...] = ()
    degraded: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    secrets: frozenset[str] = frozenset()
    models: tuple[Model, ...] = ()
    revoked: Callable[[str], bool] = lambda id: False

    def __post_init__(self) -> None:
        self._recent, self._readers = Recent(self._now), Readers(self._now)
        self._in_flight = InFlight(MOST_CALLS)
        self.journal.degraded = self.degraded
        self.runner = Runner(
            self.open,
            self.journal,
            self.freezer,
            self._readers,
            lambda principal: FleetView(self, principal),
            self._now,
        )
        self.planner = Planner(self.runner, self.plans)
        self.replace_registry(self.registry)

    def replace_registry(self, registry: Registry) -> None:
        """Put a new registry in place; calls in flight keep the one they began with."""
        self.registry = registry
        self.redactor = Redactor(registry.secrets | self.secrets)
        self.runner.keep(registry.targets)

    def _now(self) -> float:
        return self.clock()

    def shown(self, text: str) -> str:
        """A caller's own text as it may be said back: without secrets and escapes."""
        return self.redactor.text(text)

    async def call(
        self,
        principal: Principal,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        approve: Approve | None = None,
        elicit: Elicit | None = None,
        still: Still | None = None,
        sample: Model | None = None,
        later: Later | None = None,
    ) -> Reply:
        """Do one call and answer it. Never raises but for cancellation: every failure is in the Reply.

        `progress` is told after each target of many, and while the call waits for a person. `approve` is asked for the
        requests that need a person's yes and answers who said it, or raises as `settle` says; `elicit` asks whoever
        sits at the client, where policy.yaml allows that. `still` names the principal again once the call has waited.
        `sample` is the client's model, for where the gateway has none of its own. `later`: they come back for it all.
        """
        started, told = time.perf_counter(), Told(progress)
        entry = self._entry(principal, tool, arguments)

        async def once(raw: Mapping[str, Any], *asking: Any) -> Decided:
            call = await self._planned(replace(self.begin(entry, tool, raw, started), still=still))
            if later is not None:
                call = replace(call, shared=call.shared.until(later, raw))
            targets = self.chosen(call.principal, call.operation, call.shared.targets, call.registry)
            return call, *await self._decisions(call, targets, *asking)

        async def decided() -> Decided:
            """When a person has answered, all is decided anew: who calls, rights, targets, policy may have changed."""
            nonlocal entry
            call, requests, decisions = await once(arguments, approve, elicit)
            if self.desk is not None and (more := await self.desk.awaited(call, decisions, told.say)):
                entry = entry if still is None else replace(entry, principal=await still())
                self._recent.take_back(principal.subject, requests[0].access.risk)
                call, requests, decisions = await once({**arguments, **more})
            if arguments.get("approval_id") and any(request.approval for request in requests):
                self._recent.take_back(principal.subject, requests[0].access.risk)  # it was counted when it asked
            if self.jobs is not None:
                call = await self.jobs.begin(call, requests, decisions, arguments)
            return call, requests, decisions

        async def results(call: Call, requests: list[Request], decisions: list[Decision]) -> list[TargetReply]:
            replies = await carried_out(self, call, requests, decisions, told)
            await advise(call, replies, self.models or ((sample,) if sample else ()), self.journal)
            return replies

        return await self.answer(entry, decided, results, told)

    async def last_seen(self, principal: Principal, id: str) -> Reply:
        """What the gateway last saw of one target, judged and audited as `get_system_status` on it; nothing is asked of
        the target itself. Never raises but for cancellation."""
        started, operation = time.perf_counter(), CATALOGUE["get_system_status"]
        entry = self._entry(principal, operation.name, {"resource": f"last status of {id}"})

        async def decided() -> Decided:
            if id not in self.registry.targets:
                raise UnknownTarget(f"there is no target {id[:100]!r}", hint="list_targets shows what there is.")
            shared = Shared((id,), "json", dry_run=False)
            call = Call(entry, operation, {}, shared, self.registry, self.policy, self.redactor, started)
            return call, *await self._decisions(call, [self.registry.targets[id]])

        async def results(call: Call, requests: list[Request], decisions: list[Decision]) -> list[TargetReply]:
            result = TargetReply(id)
            if decisions[0].permit is None:
                result.error = call.redactor.value(refusal(decisions[0]).as_dict())
                return [result]
            result.data = self.runner.last_status.get(id, {"note": "not seen yet: call get_system_status"})
            if result.data.get("untrusted"):
                result.untrusted = True
                self._readers.add(principal.subject)
            await self.journal.outcome(call, requests[0], result)
            return [result]

        return await self.answer(entry, decided, results)

    def _entry(self, principal: Principal, tool: str, raw: Mapping[str, Any]) -> Entry:
        """What the audit log gets of a call: bounded before the search for secrets, and after it."""
        arguments = shaping.clip(self.redactor.value(shaping.clip(raw, 65_536, 16_384)))
        return Entry(secrets.token_hex(8), principal, self.redactor.text(tool[:100]), arguments)

    async def answer(
        self,
        entry: Entry,
        decided: Callable[[], Awaitable[Decided]],
        results: Results,
        told: Told | None = None,
    ) -> Reply:
        """First everything is decided, then it is written down, then it is done; a job goes on without whoever is
        `told` of it."""
        with structlog.contextvars.bound_contextvars(call_id=entry.call_id), ExitStack() as place:
            try:
                place.enter_context(self._in_flight.one_more(entry.principal.subject))
                call, requests, decisions = await decided()
            except Known as known:
                await self.journal.refused(entry, "already_asked", f"the same call is job {known.id}")
                return await known.answer(told or Told(None))
            except CallError as error:
                return await self._refused(entry, error)
            except asyncio.CancelledError:
                await self.journal.refused(entry, "cancelled", "the caller went away before it was decided")
                raise
            except Exception:
                log.exception("call failed by a defect", tool=entry.tool)
                return await self._refused(entry, InternalError("the gateway failed on this call"))
            finally:
                if self.jobs is not None:
                    self.jobs.release(entry.call_id)
            work = self._do(call, requests, decisions, results)
            return await (work if told is None or self.jobs is None else self.jobs.follow(call, work, told))

    async def _do(self, call: Call, requests: list[Request], decisions: list[Decision], results: Results) -> Reply:
        try:
            await self._written_down(call, requests, decisions)
            reply = Reply(call.id, call.entry.tool, await results(call, requests, decisions))
            reply = reply if call.shared.dry_run else together(call.operation, reply)
            return shaping.bound(reply, shaping.page_start(call.operation.arguments, call.arguments))
        except CallError as error:
            return shaping.fault(call.id, call.entry.tool, error.as_dict())
        except Exception:
            log.exception("call failed by a defect", tool=call.entry.tool)
            defect = InternalError("the gateway failed on this call")
            return shaping.fault(call.id, call.entry.tool, defect.as_dict())
        finally:
            self.journal.settle(call, requests)

    async def _written_down(self, call: Call, requests: list[Request], decisions: list[Decision]) -> None:
        """Raises `AuditUnavailable`; nothing runs then, and an approval that was for it can be used again."""
        try:
            await self.journal.decided(call, requests, decisions)
        except AuditUnavailable:
            if self.desk is not None:
                await self.desk.give_back(call, requests)
            raise

    async def _refused(self, entry: Entry, error: GatewayError) -> Reply:
        shown = self.redactor.value(error.as_dict())
        await self.journal.refused(entry, error.code, shown["message"])
        return shaping.fault(entry.call_id, entry.tool, shown)

    # --- 1, 2: arguments and targets ----------------------------------------------------------------------------------

    def begin(self, entry: Entry, tool: str, raw: Mapping[str, Any], started: float) -> Call:
        operation = CATALOGUE.get(tool)
        if operation is None:
            raise UnknownTool(f"there is no tool {entry.tool!r}", hint=did_you_mean(tool[:100], CATALOGUE))
        arguments, shared = validate(operation, raw)
        meant = operation.meant(arguments)
        return Call(entry, meant, arguments, shared, self.registry, self.policy, self.redactor, started)

    async def _planned(self, call: Call) -> Call:
        """The planned call in the place of one that carries a plan out; where there is no such plan, the call itself.

        It is decided anew for whoever calls now: a plan is no right.
        """
        if call.operation.name != APPLY:
            return call
        kept = await self.planner.find(str(call.arguments.get("plan_id")), call.principal.subject)
        if kept is None:
            return call
        how = call.shared
        asked: dict[str, Any] = {"format": how.format, "dry_run": how.dry_run}
        asked |= {"approval_id": how.approval_id, "approval_wait": how.approval_wait}
        asked |= {name: value for name, value in call.arguments.items() if name == "wait" and value is not None}
        operation = CATALOGUE[kept.tool]
        arguments, shared = validate(operation, {**kept.arguments, **asked})
        entry = self._entry(call.principal, kept.tool, kept.arguments)
        entry = replace(entry, call_id=call.id)
        meant = operation.meant(arguments)
        return replace(call, entry=entry, operation=meant, arguments=arguments, shared=shared, applies=kept)

    def chosen(
        self, principal: Principal, operation: Operation, expressions: Sequence[str] | None, registry: Registry
    ) -> list[Target]:
        """The targets that a call means. Raises `UnknownTarget`."""
        if operation.selection == "none":
            return [gateway_target()]
        if operation.without_targets and (
            expressions is None or (tuple(expressions) == (GATEWAY,) and GATEWAY not in registry.targets)
        ):
            return [gateway_target()]
        return registry.select(("local",) if expressions is None else expressions, registry.within(principal.grants))

    async def _decisions(
        self, call: Call, targets: Sequence[Target], approve: Approve | None = None, elicit: Elicit | None = None
    ) -> tuple[list[Request], list[Decision]]:
        if self.jobs is not None:
            await self.jobs.claim(call, [target.id for target in targets])
        requests = self.requests(call.principal, call.operation, call.arguments, targets, call.registry, call=call)
        decisions = [judged(request) for request in requests]
        if any(decision.permit is not None or decision.against.code != "rate_limited" for decision in decisions):
            self._recent.add(call.principal.subject, requests[0].access.risk)
        found = {decision.answer for decision in decisions}
        if found == {Answer.DENY} or not (call.applies or (Answer.ASK in found and not call.shared.dry_run)):
            return requests, decisions
        planned = await self.planner.plan(call, requests)
        if call.applies is not None:
            moved = await self.planner.differs(call, planned, call.applies.id)
            if moved is not None:
                return requests, held(decisions, moved)
        if planned is not None:
            requests = [replace(request, plan=planned.shown) for request in requests]
        return await settle(self.desk, call, requests, decisions, judged, approve, elicit, self.planner.moved)

    # --- 3: the policy question ---------------------------------------------------------------------------------------

    def requests(
        self,
        principal: Principal,
        operation: Operation,
        arguments: Mapping[str, Any],
        targets: Sequence[Target],
        registry: Registry,
        *,
        call: Call | None = None,
    ) -> list[Request]:
        """What the gate is asked, per target. Without a `call` it is for an explanation: nothing is counted."""
        access, recent = operation.access_for(arguments), self._recent.counts(principal.subject)
        policy = call.policy if call else self.policy
        grants = [(grant, registry.granted(grant)) for grant in principal.grants]
        neighbours = registry.hosts(principal.grants) if operation.port == "Network" else frozenset[str]()
        found, frozen, tainted = [], self.freezer.now(), self._readers.ago(principal.subject)
        for target in targets:
            own = target is gateway_target()
            via = () if own else registry.route(target)
            request = Request(
                call_id=call.id if call else "explain",
                principal=principal,
                operation=operation,
                access=access,
                arguments=arguments,
                target=target,
                via=via,
                fault=None if own else registry.faults.get(target.id),
                granted=principal.grants if own else tuple(grant for grant, ids in grants if target.id in ids),
                load=Load(recent, self.runner.slots.running(target.id)),
                root=self.root
                if target.executor == "local"
                else getattr(target.connection, "username", None) == "root",
                neighbours=neighbours,
                freeze=frozen.on(target, via) if frozen.anything else NOT_FROZEN,
                weakened=self.weakened,
                demanded=policy.demands(access.risk, target),
                dry_run=call.shared.dry_run if call else False,
                own=own,
                tainted=tainted,
                taint_lasts=60.0 * policy.taint_minutes,
                stacks=policy.stacks,
            )
            found.append(request)
        return found

    def explain(
        self, principal: Principal, operation: Operation, arguments: Mapping[str, Any], targets: Sequence[Target]
    ) -> list[Decision]:
        """What the gate would say now."""
        return [judged(one) for one in self.requests(principal, operation, arguments, targets, self.registry)]


def judged(request: Request) -> Decision:
    """The gate's decision. A rule that fails is a Deny: it must not say yes by falling over."""
    try:
        return decide(request)
    except Exception:
        log.exception("a policy rule failed", tool=request.operation.name, target=request.target.id)
        failed = Verdict("gate", Answer.DENY, "a policy rule failed on this call; nothing ran", InternalError.code)
        return Decision((failed,), None)


async def contained(work: Awaitable[T], what: str, *expected: type[Exception]) -> T:
    """Await `work`; a defect in it is logged and raised as `InternalError`, so that its text reaches no client."""
    try:
        return await work
    except expected:
        raise
    except Exception as error:
        log.exception("request failed by a defect", request=what)
        raise InternalError(f"the gateway failed on this {what}") from error
