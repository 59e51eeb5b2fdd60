"""Who was not let in: every refused credential is told to the journal, with the peer's address and the reason."""

from collections.abc import Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Tell = Callable[[str, str], None]

_reasons: ContextVar[list[str] | None] = ContextVar("reasons", default=None)


def because(reason: str) -> None:
    """Say why the credential of the request being served is refused; for the log, never for the client."""
    reasons = _reasons.get()
    if reasons is not None:
        reasons.append(reason)


class Refusals:
    """ASGI middleware: tells of each answer 401."""

    def __init__(self, app: ASGIApp, tell: Tell) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reasons: list[str] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                self._tell(_peer(scope), reasons[-1] if reasons else _seen(scope))
            await send(message)

        _reasons.set(reasons)
        await self._app(scope, receive, watched)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _seen(scope: Scope) -> str:
    given = any(name == b"authorization" for name, _ in scope["headers"])
    return "the credential was not accepted" if given else "no credential"
