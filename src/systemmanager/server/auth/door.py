"""The way in over HTTP: no request gets past without exactly one verified credential."""

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from systemmanager.journal import Journal
from systemmanager.server.auth.authentication import Authentication
from systemmanager.server.auth.identity import Missing, Refused

OPEN = frozenset({"/healthz"})
"""What answers without asking who calls."""

GUARDED = "/mcp"
"""What answers to a verified caller. Everything else is not there, whatever routes a library may have added."""


class Door:
    """ASGI middleware: puts the verified caller into the request, or answers 401 and writes that down."""

    def __init__(self, app: ASGIApp, authentication: Authentication, journal: Journal) -> None:
        self._app, self._authentication, self._journal = app, authentication, journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if scope["path"] != GUARDED:
            await _error(404, "not_found", "there is nothing here")(scope, receive, send)
            return
        try:
            scope["user"] = await self._authentication.user(scope)
        except Refused as refused:
            self._journal.refused_credential(peer(scope), str(refused))
            await _challenge(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def peer(scope: Scope) -> str:
    """Where a request comes from, as the audit log names it."""
    client = scope.get("client")
    return client[0] if client else "unix socket"


def _challenge(refused: Refused) -> Response:
    """401 (RFC 6750, section 3): `error` only where a credential was given; never why it is no good."""
    missing = isinstance(refused, Missing)
    parts = [] if missing else ['error="invalid_token"']
    message = "this needs a bearer token" if missing else "the credential is not accepted"
    header = " ".join(["Bearer", ", ".join(parts)]).strip()
    return _error(401, "unauthorized", message, {"WWW-Authenticate": header})


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)
