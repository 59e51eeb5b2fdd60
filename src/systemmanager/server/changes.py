"""Telling connected clients that the lists they hold have changed: both protocol eras, best effort."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import mcp_types
from fastmcp import FastMCP
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from mcp.server.connection import Connection
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.subscriptions import event_to_notification

ALL: tuple[ServerEvent, ...] = (ToolsListChanged(), ResourcesListChanged(), PromptsListChanged())

TELL_WITHIN = 2.0
"""Seconds for all clients together: one that does not read keeps nobody waiting."""


class Changes(Middleware):
    """Knows who listens: open `subscriptions/listen` streams (2026-07-28) and sessions (up to 2025-11-25)."""

    def __init__(self, server: FastMCP) -> None:
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus, max_subscriptions=256, max_buffered_events=64)
        self._sessions: WeakSet[Connection] = WeakSet()
        server.add_middleware(self)
        server._mcp_server.add_request_handler(
            "subscriptions/listen", mcp_types.SubscriptionsListenRequestParams, self._listen
        )

    async def on_initialize(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        result = await call_next(context)
        if context.fastmcp_context is not None:
            self._sessions.add(context.fastmcp_context.session._connection)
        return result

    async def announce(self, *events: ServerEvent) -> None:
        """What callers can use and read has changed: with the registry, all of it. Never raises."""
        chosen = events or ALL
        for event in chosen:
            await self._bus.publish(event)
        told = [self._tell(connection, chosen) for connection in list(self._sessions)]
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_WITHIN):
                await asyncio.gather(*told, return_exceptions=True)

    async def _tell(self, connection: Connection, events: Sequence[ServerEvent]) -> None:
        for event in events:
            await connection.notify(event_to_notification(event, {}).method, None)

    def end(self) -> None:
        """Let open listen streams end in order."""
        self._listen.close()
