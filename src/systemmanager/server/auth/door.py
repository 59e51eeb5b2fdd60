"""The way in over HTTP: no request gets past without exactly one verified credential."""

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from systemmanager.journal import Journal
from systemmanager.server.auth.authentication import Authentication, peer
from systemmanager.server.auth.identity import Missing, Refused
from systemmanager.server.auth.throttle import Throttled

OPEN = frozenset({"/healthz"})
"""What answers without asking who calls."""

GUARDED = "/mcp"
"""What answers to a verified caller. Everything else is not there, whatever routes a library may have added."""


class Door:
    """ASGI middleware: puts the verified caller into the request, or answers 401 and writes that down."""

    def __init__(self, app: ASGIApp, authentication: Authentication, journal: Journal) -> None:
        self._app, self._authentication, self._journal = app, authentication, journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == GUARDED:
            try:
                scope["user"] = await self._authentication.user(scope)
            except Refused as refused:
                self._journal.refused_credential(peer(scope), str(refused))
                await self._challenge(refused)(scope, receive, send)
                return
        elif scope["type"] == "http" and scope["path"] not in OPEN:
            await self._elsewhere(scope)(scope, receive, send)
            return
        elif scope["type"] not in ("http", "lifespan"):
            return
        await self._app(scope, receive, send)

    def _elsewhere(self, scope: Scope) -> Response:
        """The metadata that leads a client to a token, when there is an issuer; else nothing."""
        resource = self._authentication.resource
        document = resource.documents.get(scope["path"]) if resource is not None else None
        if document is None:
            return error(404, "not_found", "there is nothing here")
        if scope["method"] not in ("GET", "HEAD"):
            return error(405, "method_not_allowed", "GET only", {"Allow": "GET, HEAD"})
        return JSONResponse(document, headers={"Cache-Control": "max-age=300"})

    def _challenge(self, refused: Refused) -> Response:
        """401 (RFC 6750, section 3): `error` only where a credential was given; never why it is no good."""
        if isinstance(refused, Throttled):
            return throttled(refused)
        missing, resource = isinstance(refused, Missing), self._authentication.resource
        parts = [] if missing else ['error="invalid_token"']
        parts += resource.challenge if resource is not None else []
        message = "this needs a bearer token" if missing else "the credential is not accepted"
        header = " ".join(["Bearer", ", ".join(parts)]).strip()
        return error(401, "unauthorized", message, {"WWW-Authenticate": header})


def throttled(many: Throttled) -> Response:
    """What an address is told that has had too many attempts."""
    wait = {"Retry-After": str(many.seconds)}
    return error(429, "too_many_attempts", "too many failed attempts from this address", wait)


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)
