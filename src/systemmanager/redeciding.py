"""Deciding again what goes on for long: the next wave, and a job whose gateway was stopped.

What was asked and the yes that was given stay; policy, targets, freezes and who holds what are those of now. A job
outlives the credential that it came with, so that one is not asked for again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from systemmanager.journal import Call
from systemmanager.policy.gate import decide
from systemmanager.policy.grants import common
from systemmanager.policy.verdicts import deny
from systemmanager.policyfile import Policy
from systemmanager.request import Decision, Load, Principal, Request

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


def decided_again(gateway: "Gateway", call: Call, pairs: Sequence[Pair]) -> list[Pair]:
    """Requests that were permitted once, as the gate sees them now. A target that is gone is no target.

    Neither the rate nor what was read since counts again: the call was counted, and its own answers are untrusted text.
    """
    policy, registry = gateway.policy, gateway.registry
    principal = still_held(call.principal, policy)
    now = replace(call, entry=replace(call.entry, principal=principal), policy=policy, registry=registry)
    there = [registry.targets[before.target.id] for before, _ in pairs if before.target.id in registry.targets]
    asked = gateway.requests(principal, call.operation, call.arguments, there, registry, call=now)
    found = {request.target.id: request for request in asked}
    answers: list[Pair] = []
    for before, decision in pairs:
        request = found.get(before.target.id)
        if request is None:
            gone = deny("registry", f"there is no target {before.target.id!r} any more", "unknown_target")
            answers.append((before, Decision((gone,), None)))
        elif decision.permit is None:
            answers.append((before, decision))
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
