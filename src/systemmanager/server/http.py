"""Streamable HTTP: the ASGI app around the MCP server, and the process that serves it."""

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
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
from systemmanager.settings import Settings

MAX_BODY = 1024 * 1024
"""Bytes of one request; arguments are small."""

STOP_WITHIN = 5
"""Seconds that requests in flight get when the gateway stops."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")

log = structlog.get_logger("systemmanager")


class BoundedBody:
    """ASGI middleware: refuses a request whose body is larger than `MAX_BODY`, by its header or while it comes in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY:
            await _too_large()(scope, receive, send)
            return
        received, started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
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


class _TooLarge(Exception):
    pass


def _too_large() -> Response:
    return JSONResponse({"error": {"code": "body_too_large", "message": f"at most {MAX_BODY} bytes"}}, status_code=413)


def accepted_hosts(settings: Settings) -> list[str]:
    """What may stand in a request's Host header, ports aside: that stops DNS rebinding."""
    own = urlsplit(settings.base_url).hostname if settings.base_url else None
    listening = settings.host if settings.host not in ("0.0.0.0", "::") else None  # noqa: S104
    names = [*LOOPBACK, *settings.allowed_hosts, *(name for name in (own, listening) if name)]
    return sorted({variant for name in names for variant in (name, f"{name}:*")})


def http_app(server: FastMCP, gateway: Gateway, settings: Settings) -> ASGIApp:
    """The ASGI app: MCP at `/mcp`, liveness at `/healthz` (without any detail: nobody is asked who they are)."""

    @server.custom_route("/healthz", methods=["GET"])
    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "degraded" if gateway.degraded else "ok"})

    return server.http_app(
        path="/mcp",
        middleware=[Middleware(BoundedBody)],
        host_origin_protection=True,
        allowed_hosts=accepted_hosts(settings),
    )


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to us: its own handling ends the process before every teardown has run."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def listening(app: ASGIApp, settings: Settings) -> AsyncIterator[int]:
    """Serve `app`; gives the port once it is ready to answer. Leaving it drains and stops. Raises `OSError`."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=STOP_WITHIN,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=512,
    )
    server = _Server(config)
    listener = _bind(settings)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise OSError("the MCP server did not start")
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


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


async def serve(app: ASGIApp, settings: Settings, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT. A second signal does not hurry: the drain is bounded by `STOP_WITHIN`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with listening(app, settings) as port:
        gc.collect()
        gc.freeze()
        ready(port)
        await stop.wait()
        log.info("stopping")
