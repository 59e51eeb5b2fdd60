"""Answers to approval requests that come by themselves: signed POSTs of the approval webhook to `/approvals/<id>`."""

import asyncio
import re

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from systemmanager.approvals.answers import NoAnswer
from systemmanager.approvals.webhook import MOST_BYTES, Webhook, read
from systemmanager.errors import ApprovalRefused, GatewayError
from systemmanager.gateway import Gateway
from systemmanager.server.auth.authentication import peer

BODY_WITHIN = 5.0
"""Seconds in which an answer must have come in."""

_PATH = re.compile(r"/approvals/([0-9a-f]{16})")


class Callbacks:
    """ASGI middleware, before the door: who answers shows the webhook's secret instead of a token."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk = self._gateway.desk
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None or desk is None or desk.webhook is None:
            await self._app(scope, receive, send)
            return
        response = await self._answered(Request(scope, receive), desk.webhook, found[1])
        await response(scope, receive, send)

    async def _answered(self, request: Request, webhook: Webhook, id: str) -> Response:
        if request.method != "POST":
            return _error(405, "method_not_allowed", "POST only")
        try:
            async with asyncio.timeout(BODY_WITHIN):
                body = await _body(request)
            webhook.verify(request.headers, body)
        except TimeoutError:
            return _error(408, "body_too_slow", f"the body must come in within {BODY_WITHIN:g} s")
        except ClientDisconnect:
            return _error(400, "disconnected", "the body broke off")
        except NoAnswer as error:
            self._gateway.journal.refused_credential(peer(request.scope), f"approval webhook: {error}")
            return _error(401, "unauthorized", str(error))
        return await self._taken(body, id)

    async def _taken(self, body: bytes, id: str) -> Response:
        desk = self._gateway.desk
        assert desk is not None
        try:
            said = read(body, id=id)
            asked = await desk.answer(id, said.person, said.approved, "webhook", digest=said.digest)
        except NoAnswer as error:
            return _error(400, "invalid_answer", str(error))
        except ApprovalRefused as error:
            return _error(409, error.code, error.message)
        except GatewayError as error:
            return _error(404, error.code, error.message)
        return JSONResponse({"id": asked.id, "state": asked.state})


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise NoAnswer(f"more than {MOST_BYTES} bytes")
    return body


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)
