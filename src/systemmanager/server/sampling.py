"""Asking the model at the client, in the way of each era: a request of our own, or an answer that asks back.

Only what was found is put in order and in words by it (`diagnosis/advice.py`), so that nothing hangs on its answer.
"""

import asyncio
import hashlib
from typing import Any

import mcp_types
from fastmcp.server.context import Context
from fastmcp.tools import ToolResult
from fastmcp.tools.base import InputRequiredToolResult
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from systemmanager.diagnosis.advice import INSTRUCTIONS

WITHIN = 15.0
"""Seconds in which the client must have answered."""

MOST_TOKENS = 700
MOST_ANSWER = 16_384
"""Characters of an answer that are read."""

_KEY = "advice"


class ModelAtClient:
    """The model at the client of one request, where the client says that it has one.

    In the new era the call is answered with the question, and the client makes it again with the model's answer. A call
    that comes with any answer is not asked again: an approval's answer is for once.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: str | None = None

    @property
    def name(self) -> str:
        return "the client's model"

    def there(self) -> bool:
        """Whether the client says that it has a model, and can be asked now."""
        session = self._context.session
        capabilities = session.client_capabilities
        if capabilities is None or capabilities.sampling is None:
            return False
        if not self._modern:
            return bool(session.can_send_request)
        return self._context.input_responses is None or self._asked_before

    @property
    def _modern(self) -> bool:
        return self._context.session.protocol_version in MODERN_PROTOCOL_VERSIONS

    @property
    def _asked_before(self) -> bool:
        return (self._context.request_state or "").startswith(f"{_KEY}:")

    async def ask(self, text: str) -> str | None:
        """Its answer; None when it has yet to be asked."""
        if not self._modern:
            return await self._now(text)
        responses = self._context.input_responses
        if responses is None:
            self._open = text
            return None
        return _said(responses.get(_KEY))

    async def _now(self, text: str) -> str | None:
        request = mcp_types.CreateMessageRequest(params=_params(text))
        about = ServerMessageMetadata(related_request_id=self._context.request_id)
        try:
            async with asyncio.timeout(WITHIN):
                session = self._context.session
                return _said(await session.send_request(request, mcp_types.CreateMessageResult, metadata=about))
        except (TimeoutError, MCPError, ValidationError):
            return None

    def answer(self) -> ToolResult | None:
        """What the call is answered with instead, when the model has yet to be asked."""
        if self._open is None:
            return None
        requests: dict[str, mcp_types.InputRequest] = {_KEY: mcp_types.CreateMessageRequest(params=_params(self._open))}
        state = f"{_KEY}:{hashlib.sha256(self._open.encode('utf-8', 'replace')).hexdigest()[:16]}"
        return InputRequiredToolResult(mcp_types.InputRequiredResult(input_requests=requests, request_state=state))


def _params(text: str) -> mcp_types.CreateMessageRequestParams:
    message = mcp_types.SamplingMessage(role="user", content=mcp_types.TextContent(type="text", text=text))
    return mcp_types.CreateMessageRequestParams(
        messages=[message], system_prompt=INSTRUCTIONS, max_tokens=MOST_TOKENS, temperature=0
    )


def _said(result: Any) -> str | None:
    """The text of a message; other content is none."""
    content = getattr(result, "content", None)
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    return content.text[:MOST_ANSWER] if isinstance(content, mcp_types.TextContent) else None
