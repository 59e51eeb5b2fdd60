"""One call on many targets in waves, with what the gateway has: its audit log, its plans, its health check."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from systemmanager.journal import Call
from systemmanager.policy.verdicts import against
from systemmanager.redeciding import decided_again
from systemmanager.request import Decision, Request
from systemmanager.shaping import TargetReply
from systemmanager.telling import Told
from systemmanager.waves import NOT_ASKED, Strategy, Surroundings, in_waves

if TYPE_CHECKING:
    from systemmanager.gateway import Gateway


async def carried_out(
    gateway: "Gateway", call: Call, requests: list[Request], decisions: list[Decision], told: Told
) -> list[TargetReply]:
    """The answers of a decided call: planned only, or done, in waves where the call wants them."""
    if call.shared.dry_run:
        found = await gateway.planner.preview(call, requests, decisions)
        for request, reply in found:
            if request.plan is not None:  # what was looked at for a plan is on record
                await gateway.journal.outcome(call, request, reply)
        return [reply for _, reply in found]
    decisions = await gateway.planner.claim(call, decisions)
    if call.shared.strategy is None:
        return await gateway.runner.results(call, requests, decisions, told)
    return await _rolled_out(gateway, call, call.shared.strategy, list(zip(requests, decisions, strict=True)), told)


async def _rolled_out(
    gateway: "Gateway", call: Call, strategy: Strategy, pairs: Sequence[tuple[Request, Decision]], told: Told
) -> list[TargetReply]:
    """The answers of a call in waves, in the order of its targets.

    All is decided before the first wave. What was refused then is in no wave and no failure: nothing is done there.
    Each further wave is decided again: a right that is gone, or a freeze, refuses what is left of it, and counts as a
    failure.
    """
    by_id = {request.target.id: (request, decision) for request, decision in pairs}
    may = [id for id, (_, decision) in by_id.items() if decision.permit is not None]
    refused = [pair for pair in pairs if pair[1].permit is None]
    found = await gateway.runner.results(call, *_apart(refused), told) if refused else []
    told.total = max(told.total, len(may))

    async def run(number: int, ids: Sequence[str]) -> list[TargetReply]:
        chosen = [by_id[id] for id in ids]
        if number > 1:
            chosen = await decided_again(gateway, call, chosen)
            by_id.update({request.target.id: (request, decision) for request, decision in chosen})
        if number > 1 and call.applies is not None:
            moved = await gateway.planner.moved_on(call, [request for request, _ in chosen])
            chosen = [
                (one, against(decision, moved[one.target.id]) if one.target.id in moved else decision)
                for one, decision in chosen
            ]
        replies = await gateway.runner.results(replace(call, wave=number), *_apart(chosen), told)
        for (request, decision), reply in zip(chosen, replies, strict=True):
            if decision.permit is None:  # what was intended and is not done now is on record
                await gateway.journal.outcome(call, request, reply)
        return replies

    async def well(ids: Sequence[str]) -> dict[str, str]:
        return await unwell_of(gateway, call, ids)

    async def begins(number: int, count: int, ids: Sequence[str]) -> str | None:
        await told.say(told.done, f"wave {number} of {count}: {len(ids)} target{'s'[: len(ids) > 1]}")
        details = {"call_id": call.id, "tool": call.operation.name, "wave": number, "of": count, "targets": list(ids)}
        await gateway.journal.event("wave", details, call.principal.subject)
        return gateway.degraded.get("audit")

    found += await in_waves(strategy, may, Surroundings(run, well, begins))
    for reply in found:
        if reply.error is not None and reply.error["code"] == "not_started":
            await gateway.journal.outcome(call, by_id[reply.target][0], reply)
    replies = {reply.target: reply for reply in found}
    return [replies[id] for id in by_id]


async def unwell_of(gateway: "Gateway", call: Call, ids: Sequence[str]) -> dict[str, str]:
    """What is wrong with targets, by the code of their health check; those that are well are left out."""
    reply = await gateway.call(call.principal, "health_check", {"targets": list(ids)})
    if reply.error is not None:
        return dict.fromkeys(ids, str(reply.error["code"]))
    codes = {one.target: str(one.error["code"]) for one in reply.results if one.error is not None}
    return {id: code for id, code in codes.items() if code not in NOT_ASKED}


def _apart(pairs: Sequence[tuple[Request, Decision]]) -> tuple[list[Request], list[Decision]]:
    return [request for request, _ in pairs], [decision for _, decision in pairs]
