"""The gate: every rule is asked, each verdict is kept, and only when all allow is there a Permit."""

from systemmanager.policy.compose.judge import Judge
from systemmanager.policy.rules import RULES
from systemmanager.request import Answer, Decision, Permit, Request, Verdict

LOOKING = 60.0
"""Seconds that a rehearsal may take at most."""


def decide(request: Request) -> Decision:
    """The decision on one Request. Pure: the same Request always gets the same Decision."""
    verdicts = _verdicts(request)
    if not verdicts or any(verdict.answer is not Answer.ALLOW for verdict in verdicts):
        return Decision(verdicts, None)
    return Decision(verdicts, _permit(request))


def rehearse(request: Request) -> Permit | None:
    """A Permit to look at what the call would do, for a plan: where no rule says no. A yes may still be missing, as
    the plan is what the person who says it wants to see. It is for looking alone, and without root by sudo."""
    verdicts = _verdicts(request)
    if not verdicts or any(verdict.answer is Answer.DENY for verdict in verdicts):
        return None
    return _permit(request, rehearsal=True)


def _verdicts(request: Request) -> tuple[Verdict, ...]:
    return tuple(rule(request) for rule in RULES)


def _permit(request: Request, *, rehearsal: bool = False) -> Permit:
    limit = request.target.constraints.timeout
    timeout = request.operation.timeout if limit is None else min(request.operation.timeout, limit)
    judge = Judge(request.target, request.stacks) if request.operation.port == "Stacks" else None
    timeout = min(timeout, LOOKING) if rehearsal else timeout
    return Permit(
        request.call_id, request.target, request.via, request.access, timeout, request.neighbours, judge, rehearsal
    )
