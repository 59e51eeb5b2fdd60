"""Makes plans, compares them with the world as it is now, and lets each be carried out once."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import structlog
from pydantic_core import to_jsonable_python

from systemmanager.approvals.store import digest_of
from systemmanager.errors import NotFound, PlansUnavailable, PreconditionFailed, UnknownTool
from systemmanager.fencing import unfenced
from systemmanager.journal import Call
from systemmanager.operation import CATALOGUE
from systemmanager.plan import Plan
from systemmanager.plans.store import Kept, PlanStore
from systemmanager.policy.gate import rehearse
from systemmanager.policy.verdicts import held
from systemmanager.refusal import preview
from systemmanager.request import Answer, Decision, Request, Verdict
from systemmanager.running import Runner
from systemmanager.shaping import TargetReply

MOST_MOVED = 20
"""Differences that an answer names."""

MOST_SHOWN = 100
"""Changes of one group of targets that a person is shown who is asked for a yes."""

MOST_DIFF = 8000
"""Characters of a diff that they are shown."""

APPLY = "apply_plan"
MOVED = "what was planned is not so any more, nothing ran"
ANEW = "Look at a new plan: the same call with dry_run=true"
GONE = "there is no such plan: it was carried out, is older than 30 minutes, or is not yours"

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class Planned:
    """One call's plan. `basis` is all that its id is made from but for tool and arguments; `replies` are by target."""

    id: str
    basis: Mapping[str, Any]
    replies: Mapping[str, TargetReply]
    strategy: Mapping[str, Any] | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """What a person sees of it: the same of several targets once."""
        groups: dict[str, dict[str, Any]] = {}
        for id, reply in self.replies.items():
            seen = unfenced(reply.data) if reply.error is None else {"problem": reply.error["message"]}
            groups.setdefault(digest_of(seen), {"targets": [], **_beginning(seen)})["targets"].append(id)
        waves = {} if self.strategy is None else {"strategy": self.strategy}
        return {"plan_id": self.id, **waves, "groups": list(groups.values())}


class Planner:
    """A gateway's plans. Without a store they are shown, and none can be carried out by its id.

    All may raise `PlansUnavailable`.
    """

    def __init__(self, runner: Runner, store: PlanStore | None) -> None:
        self._runner, self._store = runner, store

    async def plan(self, call: Call, requests: Sequence[Request]) -> Planned | None:
        """What a call would do, on all targets at once; None for one that plans nothing."""
        permits = [(request, rehearse(request)) for request in requests]
        looked = [(request, permit) for request, permit in permits if permit is not None]
        if call.operation.plan is None or not looked or not looked[0][0].access.mutates:
            return None
        found = await asyncio.gather(*(self._runner.rehearse(call, request, permit) for request, permit in looked))
        plans: dict[str, Plan] = {}
        replies: dict[str, TargetReply] = {}
        for (request, _), (reply, plan) in zip(looked, found, strict=True):
            replies[request.target.id] = reply
            if plan is not None:
                plans[request.target.id] = plan
        basis = {
            "policy": call.policy.version,
            "registry": call.registry.version,
            "targets": {id: plans[id].preconditions for id in sorted(plans)},
        }
        arguments = to_jsonable_python(call.arguments) | call.shared.planned
        id = digest_of({"operation": call.operation.name, "arguments": arguments, **basis})
        planned = Planned(id, basis, replies, call.shared.planned.get("strategy"))
        if plans and call.applies is None:
            await self._keep(call, planned, {**arguments, "targets": list(plans)})
        return planned

    async def _keep(self, call: Call, planned: Planned, arguments: Mapping[str, Any]) -> None:
        if self._store is not None:
            kept = Kept(planned.id, call.operation.name, arguments, planned.basis)
            await _stored(self._store.keep, call.principal.subject, kept)

    async def preview(
        self, call: Call, requests: Sequence[Request], decisions: Sequence[Decision]
    ) -> list[tuple[Request, TargetReply]]:
        """A dry run's answers: the decision, and what the call would do, with the id to do it by."""
        planned = await self.plan(call, requests)
        shown = None if planned is None else planned.shown
        answers = []
        for request, decision in zip(requests, decisions, strict=True):
            reply = preview(call, request, decision)
            seen = planned.replies.get(request.target.id) if planned else None
            if planned is not None and seen is not None:
                _join(reply, seen, planned.id)
                request = replace(request, plan=shown)
            answers.append((request, reply))
        return answers

    async def find(self, id: str, subject: str) -> Kept | None:
        """The plan to be carried out."""
        if self._store is None:
            return None
        kept = await _stored(self._store.find, id, subject)
        if kept is not None and kept.tool not in CATALOGUE:
            raise UnknownTool(f"the plan is for {kept.tool!r}, which is not there any more")
        return kept

    async def claim(self, call: Call, decisions: Sequence[Decision]) -> list[Decision]:
        """Use up the plan that a call carries out; who comes second may do nothing."""
        found = list(decisions)
        if call.applies is None or self._store is None or not any(one.permit for one in found):
            return found
        if await _stored(self._store.claim, call.applies.id, call.principal.subject):
            return found
        return held(found, Verdict("plan", Answer.DENY, GONE, NotFound.code, ANEW))

    async def moved(self, call: Call, requests: Sequence[Request], since: str | None) -> Verdict | None:
        """Why the world is not as it was when a plan was made; None when it is, and for a call that has no plan."""
        now = await self.plan(call, requests)
        return None if (now is None and since is None) else await self.differs(call, now, since)

    async def moved_on(self, call: Call, requests: Sequence[Request]) -> dict[str, Verdict]:
        """What has moved on some targets since the plan that a call carries out, by target."""
        now = await self.plan(call, requests)
        then = (call.applies.basis if call.applies else {}).get("targets") or {}
        here = now.basis["targets"] if now else {}
        return {
            id: Verdict("plan", Answer.DENY, MOVED, PreconditionFailed.code, ANEW)
            for id in (request.target.id for request in requests)
            if id not in here or then.get(id) != here[id]
        }

    async def differs(self, call: Call, now: Planned | None, since: str | None) -> Verdict | None:
        """The same, for a plan that was made just now."""
        if now is not None and now.id == since:
            return None
        before: Mapping[str, Any] | None = None if call.applies is None else call.applies.basis
        if before is None and self._store is not None and since is not None:
            before = await _stored(self._store.basis, since, call.principal.subject)
        moved = list(_differences(before or {}, now.basis if now else {}, now.replies if now else {}))
        said = "; ".join(f"{one['target']}: {one['name']} was {one['was']}, is {one['is']}" for one in moved[:5])
        details = {"moved": moved[:MOST_MOVED]} if moved else None
        reason = f"{MOVED}: {said or 'another plan comes out now'}"
        return Verdict("plan", Answer.DENY, reason[:600], PreconditionFailed.code, ANEW, details=details)


async def _stored(do: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Ask the store, in a thread. Raises `PlansUnavailable`."""
    try:
        return await asyncio.to_thread(do, *given, **named)
    except (sqlite3.Error, OSError) as error:
        log.error("plans can't be read or written", error=str(error))
        raise PlansUnavailable(f"plans can't be kept or looked up: {error}") from error


def _beginning(seen: dict[str, Any]) -> dict[str, Any]:
    """As much as anybody reads; a dry run shows all."""
    changes, diff = seen.get("changes", []), seen.get("diff", "")
    cut = {"changes": changes[:MOST_SHOWN], "more_changes": len(changes) - MOST_SHOWN} if changes[MOST_SHOWN:] else {}
    return {**seen, **cut, **({"diff": f"{diff[:MOST_DIFF]}..."} if len(diff) > MOST_DIFF else {})}


def _join(reply: TargetReply, seen: TargetReply, id: str) -> None:
    """Put into a dry run's answer what was seen on the target."""
    if seen.error is not None:
        decision = (reply.data or {}).get("decision")
        details = {**(seen.error.get("details") or {}), "decision": decision}
        reply.data, reply.error = None, {**seen.error, "details": details}
    else:
        reply.data = {**(reply.data or {}), "plan_id": id, "plan": seen.data}
    reply.untrusted, reply.elapsed_ms = seen.untrusted, seen.elapsed_ms


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], replies: Mapping[str, TargetReply]
) -> Iterator[dict[str, Any]]:
    """What was one thing and is another, target by target; short, as it is told."""
    for name in ("policy", "registry"):
        if before and before.get(name) != now.get(name):
            yield {"target": "gateway", "name": name, "was": before.get(name), "is": now.get(name)}
    then, here = before.get("targets") or {}, now.get("targets") or {}
    for id in sorted({*then, *here}) if before else ():
        if id not in here or id not in then:
            states = [_state(id, side, replies) for side in (then, here)]
            yield {"target": id, "name": "plan", "was": states[0] if id in then else "none", "is": states[1]}
            continue
        for name in sorted({*then[id], *here[id]}):
            if then[id].get(name) != here[id].get(name):
                was, now_is = (str(side[id].get(name))[:200] for side in (then, here))
                yield {"target": id, "name": name, "was": was, "is": now_is}


def _state(id: str, side: Mapping[str, Any], replies: Mapping[str, TargetReply]) -> str:
    error = replies[id].error if id in replies else None
    return "made" if id in side else str(error["code"]) if error else "denied"
