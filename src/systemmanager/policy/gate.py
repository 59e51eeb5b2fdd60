"""The gate: every rule is asked, each verdict is kept, and only when all allow is there a Permit."""

from systemmanager.policy.compose.judge import Judge
from systemmanager.policy.rules import RULES
from systemmanager.request import Answer, Decision, Permit, Request


def decide(request: Request) -> Decision:
    """The decision on one Request. Pure: the same Request always gets the same Decision."""
    verdicts = tuple(rule(request) for rule in RULES)
    if not verdicts or any(verdict.answer is not Answer.ALLOW for verdict in verdicts):
        return Decision(verdicts, None)
    limit = request.target.constraints.timeout
    timeout = request.operation.timeout if limit is None else min(request.operation.timeout, limit)
    judge = Judge(request.target, request.stacks) if request.operation.port == "Stacks" else None
    permit = Permit(request.call_id, request.target, request.via, request.access, timeout, request.neighbours, judge)
    return Decision(verdicts, permit)
