"""How a decision is told, and why a permitted operation can't even begin."""

from typing import Any

from systemmanager.errors import (
    ApprovalRequired,
    Denied,
    InternalError,
    NotConfigured,
    TargetError,
    Unsupported,
)
from systemmanager.journal import Call
from systemmanager.request import Answer, Decision, Request
from systemmanager.shaping import TargetReply
from systemmanager.target import EXECUTOR_PORTS, Target


def check_reachable(call: Call, target: Target) -> None:
    if fault := call.registry.faults.get(target.id):
        raise NotConfigured(fault, hint="Set it and reload the gateway (SIGHUP).")
    if call.operation.port not in EXECUTOR_PORTS[target.executor]:
        raise Unsupported(
            f"{call.operation.name} needs {call.operation.port}, which {target.id!r} ({target.executor}) does not have",
            hint="list_targets shows the kinds.",
        )


def preview(call: Call, request: Request, decision: Decision) -> TargetReply:
    """A dry run's answer: the decision; nothing runs."""
    data: dict[str, Any] = {"dry_run": True, "decision": decision.answer.value}
    if decision.permit is None:
        against = decision.against
        data |= {"code": against.code, "reason": against.reason}
        data |= {"fix": against.fix} if against.fix else {}
    return TargetReply(request.target.id, call.redactor.value(data), elapsed_ms=call.elapsed_ms)


def refusal(decision: Decision) -> TargetError:
    against = decision.against
    if against.code == InternalError.code:
        return InternalError(against.reason)
    if against.answer is Answer.ASK:
        return ApprovalRequired(against.reason, hint=against.fix)
    lead = "" if against.retryable else "It would need "
    hint = f"{lead}{against.fix}." if against.fix else None
    return Denied(against.reason, code=against.code, hint=hint, retryable=against.retryable)
