"""Sessions of the old era (up to 2025-11-25) over HTTP: how many there may be, and which one gives way.

fastmcp makes the SDK's session store without bounds of ours, so the app gets its own here.
"""

import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import structlog
from fastmcp import FastMCP
from fastmcp.server.http import FastMCPStreamableHTTPSessionManager, StreamableHTTPASGIApp
from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import INTERNAL_ERROR
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from systemmanager.errors import TooManySessions

RETRY_AFTER = 10
"""Seconds after which a client that was refused may well find room."""

_SESSION = "systemmanager.session"

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """`idle`: seconds without a request, an open stream or a running call after which a session ends."""

    most: int = 256
    per_principal: int = 32
    idle: float = 600.0


USUAL = SessionLimits()


class Sessions(FastMCPStreamableHTTPSessionManager):
    """The open sessions of one server."""

    def __init__(self, server: FastMCP, limits: SessionLimits) -> None:
        super().__init__(
            app=server._mcp_server,
            session_idle_timeout=limits.idle,
            # fastmcp's own guard checks Host and Origin, before this
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self.limits, self.refused, self._told = limits, 0, 0

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = Request(scope).headers.get(MCP_SESSION_ID_HEADER)
        scope[_SESSION] = self._server_instances.get(named) if named is not None else None
        try:
            await super()._handle_stateful_request(scope, receive, send)
        except TooManySessions as refused:
            self._count_refusal()
            await _refusal(refused)(scope, receive, send)

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Raises `TooManySessions` when there is no room and no session that may end for it."""
        own = [id for id in self._server_instances if self._session_owners.get(id) == requestor]
        if len(own) >= self.limits.per_principal:
            self._make_room(own, f"{len(own)} sessions of this principal are open, and all are in use")
        elif len(self._server_instances) >= self.limits.most:
            all_used = f"{len(self._server_instances)} sessions are open, and all are in use"
            self._make_room(
                own if any(self._idle_since(id) is not None for id in own) else list(self._server_instances), all_used
            )
        return super()._admit_session(requestor)

    def _make_room(self, among: list[str], none: str) -> None:
        """End the one that has been idle for longest. It counts no more from now on, its streams close in a moment."""
        idle = {id: since for id in among if (since := self._idle_since(id)) is not None}
        if not idle:
            raise TooManySessions(none)
        ending = min(idle, key=idle.__getitem__)
        transport = self._server_instances.pop(ending)
        assert self._task_group is not None
        self._task_group.start_soon(self._discard_session, ending, transport)

    def _idle_since(self, id: str) -> float | None:
        """When the session's last request, stream or call ended; None while there is one, and before the first."""
        scope = self._server_instances[id].idle_scope
        return None if scope is None or scope.deadline == math.inf else scope.deadline - self.limits.idle

    def _count_refusal(self) -> None:
        self.refused += 1
        if self.refused > self._told * 2:  # a flood doubles it a few times, and so makes a few lines
            self._told = self.refused
            log.warning("sessions refused", so_far=self.refused, open=len(self._server_instances))


@contextmanager
def holding(scope: Mapping[str, Any]) -> Iterator[None]:
    """While a call runs its session is not idle, even when the client has gone: its end would cut a change in two."""
    session: StreamableHTTPServerTransport | None = scope.get(_SESSION)
    if session is None or session.idle_scope is None:
        yield
        return
    session._requests_in_flight += 1  # this one counted already: it has no deadline now
    try:
        yield
    finally:
        session._requests_in_flight -= 1
        if not session._requests_in_flight:
            session.idle_scope.deadline = anyio.current_time() + (session._idle_timeout or math.inf)


def bound_sessions(app: Starlette, server: FastMCP, limits: SessionLimits) -> None:
    """Let fastmcp's `app` keep its sessions within `limits`. Raises `LookupError` if it is made otherwise."""
    found = [end for route in app.routes if isinstance(end := getattr(route, "endpoint", None), StreamableHTTPASGIApp)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} MCP endpoints where sessions are to be bounded")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        sessions = Sessions(server, limits)
        found[0].session_manager = sessions
        async with sessions.run():  # streams have ended when it ends: `Standing` sees to that
            yield

    app.router.lifespan_context = lifespan


def _refusal(refused: TooManySessions) -> JSONResponse:
    """A JSON-RPC error of no request: its body was not read."""
    error = {"code": INTERNAL_ERROR, "message": refused.message, "data": refused.as_dict()}
    body = {"jsonrpc": "2.0", "id": None, "error": error}
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(RETRY_AFTER)})
