"""Deciding again what goes on for long: the next wave, and a job whose gateway was stopped.

What was asked and the yes that was given stay; policy, targets, freezes and who holds what are those of now. A job
outlives a credential that expires, and an outage of who verifies it; one that was taken back ends what has not begun.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from systemmanager.errors import Unauthenticated
from systemmanager.journal import Call
from systemmanager.policy.gate import decide
from systemmanager.policy.grants import common
from systemmanager.policy.verdicts import against, deny
from systemmanager.policyfile import Policy
from systemmanager.request import Decision, Load, Principal, Request, Verdict
from systemmanager.still import taken_back

if TYPE_CHECKING:
    from systemmanager.gateway import Gateway

Pair = tuple[Request, Decision]


def still_held(principal: Principal, policy: Policy) -> Principal:
    """Who asked, with what they held then and `policy.yaml` gives them still. A token of the gateway's own holds what
    stands in it, the operator everything."""
    if principal.kind not in ("person", "node"):
        return principal
    now = policy.grants_for(principal.subject, principal.groups, principal.tags)
    return replace(principal, grants=common(principal.grants, now))


def ended(gateway: "Gateway", principal: Principal) -> Verdict | None:
    """Why nothing more is begun for who asked in an earlier process; None when their token was not taken back."""
    if principal.credential is None or not gateway.revoked(principal.credential):
        return None
    return deny("credential", f"the token that {principal.subject!r} asked with is revoked", Unauthenticated.code)


async def caller_now(call: Call, policy: Policy) -> Principal:
    """Who asked for a job, as they are now. Raises `Unauthenticated` for a credential that was taken back."""
    if call.still is not None:
        try:
            return await call.still()
        except Unauthenticated as error:
            if taken_back(error):
                raise
    return still_held(call.principal, policy)


async def decided_again(gateway: "Gateway", call: Call, pairs: Sequence[Pair]) -> list[Pair]:
    """Requests that were permitted once, as the gate sees them now. A target that is gone is no target.

    Neither the rate nor what was read since counts again: the call was counted, and its own answers are untrusted text.
    """
    policy, registry = gateway.policy, gateway.registry
    try:
        principal = await caller_now(call, policy)
    except Unauthenticated as error:
        return _refused(pairs, deny("credential", error.message, error.code))
    if call.still is None and (verdict := ended(gateway, principal)):
        return _refused(pairs, verdict)
    now = replace(call, entry=replace(call.entry, principal=principal), policy=policy, registry=registry)
    there = [registry.targets[before.target.id] for before, _ in pairs if before.target.id in registry.targets]
    asked = gateway.requests(principal, call.operation, call.arguments, there, registry, call=now)
    found = {request.target.id: request for request in asked}
    answers: list[Pair] = []
    for before, _ in pairs:
        request = found.get(before.target.id)
        if request is None:
            gone = deny("registry", f"there is no target {before.target.id!r} any more", "unknown_target")
            answers.append((before, Decision((gone,), None)))
        else:
            request = replace(
                request,
                approvers=before.approvers,
                approval=before.approval,
                plan=before.plan,
                tainted=before.tainted,
                load=Load(),
            )
            answers.append((request, decide(request)))
    return answers


def _refused(pairs: Sequence[Pair], verdict: Verdict) -> list[Pair]:
    return [(request, against(decision, verdict)) for request, decision in pairs]
