"""How a decision is told."""

from typing import Any

from systemmanager.errors import (
    ApprovalRefused,
    ApprovalRequired,
    ConnectionLost,
    Denied,
    GatewayError,
    InternalError,
    NotFound,
    PreconditionFailed,
    TargetError,
)
from systemmanager.journal import Call
from systemmanager.request import Answer, Decision, Request
from systemmanager.shaping import TargetReply

_BY_CODE = {kind.code: kind for kind in (PreconditionFailed, NotFound)}


def preview(call: Call, request: Request, decision: Decision) -> TargetReply:
    """A dry run's answer: the decision; nothing runs."""
    data: dict[str, Any] = {"dry_run": True, "decision": decision.answer.value}
    if decision.permit is None:
        against = decision.against
        data |= {"code": against.code, "reason": against.reason}
        data |= {"fix": against.fix} if against.fix else {}
    return TargetReply(request.target.id, call.redactor.value(data), elapsed_ms=call.elapsed_ms)


def failure(error: GatewayError, request: Request) -> GatewayError:
    """A failure as it is told of this use: what only looked left no doubt behind."""
    if isinstance(error, ConnectionLost) and error.hint == error.hint_default and not request.access.mutates:
        error.hint = "Nothing was changed: call again."
    return error


def refusal(decision: Decision) -> TargetError:
    against = decision.against
    if against.code == InternalError.code:
        return InternalError(against.reason)
    details = dict(against.details) if against.details else None
    if against.answer is Answer.ASK:
        return ApprovalRequired(against.reason, hint=f"{against.fix}." if against.fix else None, details=details)
    if against.code == ApprovalRefused.code:
        return ApprovalRefused(against.reason, hint=against.fix, retryable=against.retryable)
    if (kind := _BY_CODE.get(against.code)) is not None:
        return kind(against.reason, hint=f"{against.fix}." if against.fix else None, details=details)
    lead = "" if against.retryable else "It would need "
    hint = f"{lead}{against.fix}." if against.fix else None
    hint = hint and hint[0].upper() + hint[1:]
    return Denied(against.reason, code=against.code, hint=hint, retryable=against.retryable)
