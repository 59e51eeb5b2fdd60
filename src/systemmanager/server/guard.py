"""The last word on what leaves the server when something is broken: a code, never an exception's text."""

from typing import Any

from fastmcp.exceptions import DisabledError, FastMCPError, NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import ValidationError

from systemmanager.errors import InternalError
from systemmanager.gateway import contained

EXPECTED = (MCPError, FastMCPError, NotFoundError, DisabledError, ValidationError)


class Guard(Middleware):
    """The old era's dispatcher sends the text of any other exception to the client."""

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        try:
            return await contained(call_next(context), str(context.method)[:64], *EXPECTED)
        except InternalError as error:
            raise MCPError(INTERNAL_ERROR, error.message, error.as_dict()) from error
