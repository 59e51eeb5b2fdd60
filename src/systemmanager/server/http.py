"""Streamable HTTP: the ASGI app around the MCP server, and the process that serves it."""

import asyncio
import gc
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import structlog
import uvicorn
from fastmcp import FastMCP
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from systemmanager.gateway import Gateway
from systemmanager.server.auth.authentication import Authentication
from systemmanager.server.auth.door import Door
from systemmanager.server.callbacks import Callbacks
from systemmanager.server.connections import Connections, Limits, room_for_connections
from systemmanager.server.peers import UID, UnixListener, with_peers
from systemmanager.server.sessions import USUAL, SessionLimits, bound_sessions
from systemmanager.server.standing import Standing
from systemmanager.settings import Settings

MAX_BODY = 1024 * 1024
"""Bytes of one request; arguments are small."""

BODY_WITHIN = 30.0
"""Seconds in which the body of a request must have come in."""

STOP_WITHIN = 4
"""Seconds that requests in flight get when the gateway stops."""

HURRY = 1
"""Seconds that they get when a person presses Ctrl-C."""

CLEAN_WITHIN = 3
"""Seconds that cancelled requests get to end what they began on targets."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
NOWHERE = f"{token_hex(16)}.invalid"
"""A host that nobody knows and no name server has (RFC 6761, 6.4)."""

log = structlog.get_logger("systemmanager")


class BoundedBody:
    """ASGI middleware: refuses a request whose body is larger than `MAX_BODY`, by its header or while it comes in.

    A body that does not come in whole within `BODY_WITHIN` is refused too: a slow client holds no slot for long.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared, encoding = b"0", b"identity"
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared = value
            elif name == b"content-encoding":
                encoding = value
        if not declared.isdigit() or int(declared[:20]) > MAX_BODY:
            await _too_large()(scope, receive, send)
            return
        if encoding.lower() != b"identity":
            await _refusal(415, "encoded_body", "send the body as it is, without Content-Encoding")(
                scope, receive, send
            )
            return
        received, whole, started, deadline = 0, False, False, time.monotonic() + BODY_WITHIN

        async def counted() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > MAX_BODY:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLarge:
            if not started:
                await _too_large()(scope, receive, send)
        except TimeoutError:
            if whole or started:
                raise
            await _refusal(408, "body_too_slow", f"the body must come in within {BODY_WITHIN:g} s")(
                scope, receive, send
            )


class _TooLarge(Exception):
    pass


def _refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def _too_large() -> Response:
    return _refusal(413, "body_too_large", f"at most {MAX_BODY} bytes")


class NoInside:
    """ASGI middleware: takes the SDK's own exception texts out of its answers to malformed requests (400)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 400:
                held.append(message)
            elif not held:
                await send(message)
            else:
                held.append(message)
                if not message.get("more_body"):
                    await _plain(b"".join(part.get("body", b"") for part in held))(scope, receive, send)
                    held.clear()

        await self._app(scope, receive, watched if scope["type"] == "http" else send)


def _plain(body: bytes) -> Response:
    """A 400 with the first words of its JSON-RPC error; what follows a colon is the exception's text."""
    try:
        answer = json.loads(body)
        message = str(answer["error"]["message"])
        if message.startswith(("Validation error:", "Parse error:")):
            answer["error"]["message"] = message.partition(":")[0]
    except (ValueError, TypeError, KeyError):
        return Response(body, status_code=400, media_type="text/plain")
    return JSONResponse(answer, status_code=400)


class Proxied:
    """ASGI middleware: on the unix socket the Host header is for the proxy there to check; `tailscale serve` goes by
    the name in the TLS handshake. No page of a browser's reaches a socket, nor has any the origin that is put here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and str((scope.get("client") or ("",))[0]).startswith(UID):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", NOWHERE.encode())]
        await self._app(scope, receive, send)


class Trimmed:
    """ASGI middleware: white space around a header's value is no part of it (RFC 9110, 5.5); the parser leaves it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        await self._app(scope, receive, send)


def accepted_hosts(settings: Settings) -> list[str]:
    """What may stand in a request's Host header, ports aside: that stops DNS rebinding."""
    own = urlsplit(settings.base_url).hostname if settings.base_url else None
    listening = settings.host if settings.host not in ("0.0.0.0", "::") else None  # noqa: S104
    names = [*LOOPBACK, NOWHERE, *settings.allowed_hosts, *(name for name in (own, listening) if name)]
    return sorted({variant for name in names for variant in (name, f"{name}:*")})


def http_app(
    server: FastMCP,
    gateway: Gateway,
    settings: Settings,
    authentication: Authentication,
    stop: asyncio.Event | None = None,
    sessions: SessionLimits = USUAL,
) -> ASGIApp:
    """The ASGI app: MCP at `/mcp`, liveness at `/healthz` (without any detail: nobody is asked who they are).

    Standing streams end when `stop` is set.
    """

    @server.custom_route("/healthz", methods=["GET"])
    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "degraded" if gateway.degraded else "ok"})

    app = server.http_app(
        path="/mcp",
        middleware=[
            Middleware(Callbacks, gateway),
            Middleware(Door, authentication, gateway.journal),
            Middleware(BoundedBody),
            Middleware(NoInside),
        ],
        host_origin_protection=True,
        allowed_hosts=accepted_hosts(settings),
    )
    bound_sessions(app, server, sessions)
    return Standing(Trimmed(Proxied(app)), authentication, stop or asyncio.Event())


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to us (its own handling ends the process before every teardown has run), and that
    waits for what it has cancelled to clean up."""

    def __init__(self, config: uvicorn.Config, local: UnixListener | None) -> None:
        super().__init__(config)
        self._local = local

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._local is not None and not self.should_exit:
            self.servers.append(await self._local.serve(self._connection))  # type: ignore[arg-type]

    def _connection(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(self.config, self.server_state, self.lifespan.state)
        return made

    @contextmanager
    def capture_signals(self) -> Any:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=CLEAN_WITHIN)


@asynccontextmanager
async def listening(
    app: ASGIApp,
    settings: Settings,
    patience: Callable[[], int] = lambda: STOP_WITHIN,
    connections: Connections | None = None,
) -> AsyncIterator[int]:
    """Serve `app`; gives the port once it is ready to answer. Raises `OSError`.

    Leaving it drains and stops: requests in flight get `patience()` seconds.
    """
    connections = connections or Connections()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are a line for each bad request
    config = uvicorn.Config(
        app,
        http=with_peers(connections.protocol(), proxied=settings.proxy_protocol),
        host=settings.host,
        port=settings.port,
        lifespan="on",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=STOP_WITHIN,
        proxy_headers=False,
        server_header=False,
        ws="none",
    )
    with ExitStack() as stack:
        listener = stack.enter_context(closing(_bind(settings)))
        local = stack.enter_context(closing(UnixListener(settings.socket))) if settings.socket is not None else None
        server = _Server(config, local)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            while not server.started:
                if serving.done():
                    await serving
                    raise OSError("the MCP server did not start")
                await asyncio.sleep(0.005)
            async with connections.watched():
                yield listener.getsockname()[1]
        finally:
            config.timeout_graceful_shutdown = patience()
            server.should_exit = True
            await serving


def _bind(settings: Settings) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def settle() -> None:
    """Take what the start has made out of the garbage collector's sight: later passes stay short."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 10)


async def serve(
    server: FastMCP,
    gateway: Gateway,
    settings: Settings,
    authentication: Authentication,
    ready: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight get `STOP_WITHIN` or `HURRY` seconds to end."""
    stop, loop, patience = asyncio.Event(), asyncio.get_running_loop(), STOP_WITHIN

    def hurry() -> None:
        nonlocal patience
        patience = HURRY
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, hurry)
    served = http_app(server, gateway, settings, authentication, stop)
    connections = Connections(Limits(most=room_for_connections()))
    async with listening(served, settings, lambda: patience, connections) as port:
        settle()
        ready(port)
        await stop.wait()
        log.info("stopping")
