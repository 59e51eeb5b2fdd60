"""Streams that stand open: the old era's GET stream, the new era's `subscriptions/listen`. They carry notifications."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from systemmanager.server.auth.authentication import Authentication

TOKEN_EVERY, OTHER_EVERY = 4.0, 30.0
"""Seconds after which the credential of a stream is looked at again: the gateway's own tokens, and all others."""


class Standing:
    """ASGI middleware: ends standing streams when the gateway stops, and when their credential counts no more."""

    def __init__(self, app: ASGIApp, authentication: Authentication, stop: asyncio.Event) -> None:
        self._app, self._authentication, self._stop = app, authentication, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _stands(scope):
            await self._app(scope, receive, send)
            return
        open_response = False

        async def watched(message: Message) -> None:
            nonlocal open_response
            open_response = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        async def receive_or_end() -> Message:
            arriving = asyncio.ensure_future(receive())
            try:
                await asyncio.wait((arriving, ending), return_when=asyncio.FIRST_COMPLETED)
                return arriving.result() if arriving.done() else {"type": "http.disconnect"}
            finally:
                arriving.cancel()

        ending = asyncio.create_task(self._end(scope))
        try:
            await self._app(scope, receive_or_end, watched)
            if open_response and ending.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            ending.cancel()

    async def _end(self, scope: Scope) -> None:
        """Returns when the stream has to end."""
        while True:
            user = scope.get("user")
            own = user is not None and self._authentication.own(user)
            try:
                async with asyncio.timeout(TOKEN_EVERY if own else OTHER_EVERY):
                    await self._stop.wait()
                    return
            except TimeoutError:
                if user is not None and not await self._authentication.still(scope, user):
                    return


def _stands(scope: Scope) -> bool:
    return scope["method"] == "GET" or (b"mcp-method", b"subscriptions/listen") in scope["headers"]
