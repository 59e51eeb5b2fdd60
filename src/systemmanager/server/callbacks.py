"""Answers to approval requests that come by themselves: signed POSTs of the approval webhook to `/approvals/<id>`."""

import asyncio
import re
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from systemmanager.approvals.answers import MOST_BYTES, NoAnswer, read
from systemmanager.errors import ApprovalRefused, GatewayError
from systemmanager.gateway import Gateway
from systemmanager.server.auth.authentication import peer
from systemmanager.server.auth.door import error, throttled
from systemmanager.server.auth.identity import Refused
from systemmanager.server.auth.throttle import Throttle, Throttled

if TYPE_CHECKING:
    from systemmanager.approvals.webhook import Webhook

BODY_WITHIN = 5.0
"""Seconds in which an answer must have come in."""

_PATH = re.compile(r"/approvals/([0-9a-f]{16})")


class Callbacks:
    """ASGI middleware, before the door: who answers shows the webhook's secret instead of a token.

    Attempts that fail are counted as the door counts its own, but apart from them: a flood of bad tokens does not keep
    an answer out that comes through the same proxy.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, throttle: Throttle | None = None) -> None:
        self._app, self._gateway, self._throttle = app, gateway, throttle or Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk = self._gateway.desk
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None or desk is None or desk.webhook is None:
            await self._app(scope, receive, send)
            return
        response = await self._answered(Request(scope, receive), desk.webhook, found[1])
        await response(scope, receive, send)

    async def _answered(self, request: Request, webhook: "Webhook", id: str) -> Response:
        if request.method != "POST":
            return error(405, "method_not_allowed", "POST only")
        where = peer(request.scope)
        try:
            with self._throttle.attempt(where):
                body = await _body(request)
                _verified(webhook, request, body)
        except Throttled as many:
            return throttled(many)
        except Refused as refused:
            self._gateway.journal.refused_credential(where, f"approval webhook: {refused}")
            return refused.answer if isinstance(refused, _BadBody) else error(401, "unauthorized", str(refused))
        return await self._taken(body, id)

    async def _taken(self, body: bytes, id: str) -> Response:
        desk = self._gateway.desk
        assert desk is not None
        try:
            said = read(body, id=id)
            asked = await desk.answer(id, said.person, said.approved, "webhook", digest=said.digest)
        except NoAnswer as none:
            return error(400, "invalid_answer", str(none))
        except ApprovalRefused as refused:
            return error(409, refused.code, refused.message)
        except GatewayError as failed:
            return error(404, failed.code, failed.message)
        return JSONResponse({"id": asked.id, "state": asked.state})


class _BadBody(Refused):
    """A body that is not taken in whole; `answer` says why."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = error(status, code, message)


async def _body(request: Request) -> bytes:
    """The body of an answer, bounded in time and size. Raises `Refused`."""
    too_large = _BadBody(413, "body_too_large", f"an answer has at most {MOST_BYTES} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:20]) > MOST_BYTES:
        raise too_large
    body = b""
    try:
        async with asyncio.timeout(BODY_WITHIN):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise _BadBody(408, "body_too_slow", f"the body must come in within {BODY_WITHIN:g} s") from None
    except ClientDisconnect:
        raise _BadBody(400, "disconnected", "the body broke off") from None
    return body


def _verified(webhook: "Webhook", request: Request, body: bytes) -> None:
    """Raises `Refused` for a body that the webhook has not signed."""
    try:
        webhook.verify(request.headers, body)
    except NoAnswer as why:
        raise Refused(str(why)) from None
