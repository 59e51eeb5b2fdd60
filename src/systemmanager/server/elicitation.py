"""Asking whoever sits at the client, in the way of each era: a request of our own, or an answer that asks back.

Clients are known to accept by themselves, so the desk asks here only for risks that policy.yaml names.
"""

import asyncio
import json
from typing import Any

import mcp_types
from fastmcp.server.context import Context
from fastmcp.tools import ToolResult
from fastmcp.tools.base import InputRequiredToolResult
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from systemmanager.approvals.store import Asked
from systemmanager.plans.showing import lines_of_all

WITHIN = 300.0
"""Seconds in which the person must have answered."""

MOST_SHOWN = 4000
"""Characters of a question; what a client may cut or scroll away is not asked there."""

_KEY = "approval"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"approve": {"type": "boolean", "title": "Approve exactly this call?"}},
    "required": ["approve"],
}


class AtClient:
    """The person at the client of one request, where the client says that it can ask them.

    In the old era they are asked while the call waits. In the new one the call is answered with the question, and the
    client makes it again with their answer; it counts for the request whose id came back with it, sealed by the SDK:
    that one is bound to principal and arguments, expires, and is used once.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: Asked | None = None

    def _there(self) -> bool:
        """Whether the client says that it can show a form."""
        capabilities = self._context.session.client_capabilities
        offered = None if capabilities is None else capabilities.elicitation
        return offered is not None and (offered.form is not None or offered.url is None)

    async def ask(self, asked: Asked) -> bool | None:
        """Yes or no to a request; None when they did not say, or have yet to be asked."""
        message = question(asked)
        if not self._there() or len(message) > MOST_SHOWN:
            return None
        if self._context.session.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return await self._now(message)
        responses = self._context.input_responses
        if responses is None:
            self._open = asked
            return None
        return _said(responses.get(_KEY)) if self._context.request_state == asked.id else None

    async def _now(self, message: str) -> bool | None:
        session = self._context.session
        if not session.can_send_request:
            return None
        try:
            async with asyncio.timeout(WITHIN):
                return _said(await session.elicit_form(message, _SCHEMA, self._context.request_id))
        except (TimeoutError, MCPError, ValidationError):
            return None

    def answer(self) -> ToolResult | None:
        """What the call is answered with instead, when they have yet to be asked."""
        if self._open is None:
            return None
        params = mcp_types.ElicitRequestFormParams(message=question(self._open), requested_schema=_SCHEMA)
        requests: dict[str, mcp_types.InputRequest] = {_KEY: mcp_types.ElicitRequest(params=params)}
        wanted = mcp_types.InputRequiredResult(input_requests=requests, request_state=self._open.id)
        return InputRequiredToolResult(wanted)


def _said(result: Any) -> bool | None:
    """Only an accepted form with a true or false in it says anything."""
    if not isinstance(result, mcp_types.ElicitResult) or result.action != "accept":
        return None
    said = (result.content or {}).get("approve")
    return said if isinstance(said, bool) else None


def question(asked: Asked) -> str:
    """All that a yes would be to, in characters that show themselves."""
    call = asked.question
    lines = [
        f"{call['tool']} ({call['risk']})",
        f"targets: {', '.join(call['targets'])}",
        *(f"{name}: {json.dumps(value)}" for name, value in call["arguments"].items()),
    ]
    lines += lines_of_all(call["plan"]) if call.get("plan") else ()
    return "\n".join(line.encode("ascii", "backslashreplace").decode() for line in lines)
