"""What a person is asked: the whole of one call. They see it redacted; the digest is over what is really meant."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from systemmanager.approvals.store import digest_of
from systemmanager.errors import ApprovalRefused
from systemmanager.journal import Call
from systemmanager.request import Request

MOST_SHOWN = 64 * 1024
"""Characters of a question; nobody reads more, and nobody may approve what they can't be shown whole."""


@dataclass(frozen=True, slots=True)
class Question:
    """One call, for all of its targets. `needed` is how many people have to say yes."""

    digest: str
    shown: Mapping[str, Any]
    needed: int = 1


def question_of(call: Call, requests: Sequence[Request], plan_id: str | None = None) -> Question:
    """The question that a call is. Raises `ApprovalRefused` for one that is too large to be shown whole.

    It names every target of the call, those that would be denied too: then no later change of rights makes a yes
    cover more than was shown. It is bound to the plan by its id; `plan_id` names another one than the requests do. The
    ways to ask and to answer (`format`, `approval_id` ...) are no part of it.
    """
    principal = call.principal
    real = {
        "subject": principal.subject,
        "kind": principal.kind,
        "tool": call.operation.name,
        "targets": [request.target.id for request in requests],
        "arguments": to_jsonable_python(call.arguments),
        "risk": str(requests[0].access.risk),
        "plan": plan_id or requests[0].plan_id,
        "policy": call.policy.version,
        "registry": call.registry.version,
        **call.shared.planned,
    }
    shown = call.redactor.value({**real, "plan": requests[0].plan})
    if len(json.dumps(shown)) > MOST_SHOWN:
        raise ApprovalRefused(
            f"the call is too large to be shown whole to a person: more than {MOST_SHOWN} characters",
            hint="Ask for less in one call.",
        )
    return Question(digest_of(real), shown, 2 if any(one.target.constraints.dual_approval for one in requests) else 1)
