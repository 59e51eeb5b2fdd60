"""A gateway behind real HTTP for tests: in this process over any gateway, or as the `systemmanager serve` process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from fastmcp import Client, FastMCP
from fastmcp.client.transports import StreamableHttpTransport

from systemmanager.gateway import Gateway
from systemmanager.server.app import build, caller_of
from systemmanager.server.auth.authentication import Authentication, Tokens
from systemmanager.server.auth.ledger import Ledger
from systemmanager.server.auth.tokens import Keys, mint
from systemmanager.server.http import http_app, listening
from systemmanager.server.sessions import USUAL, SessionLimits
from systemmanager.settings import Settings
from tests.support import real_gateway, target

AUDIENCE = "http://gateway.test:8080"
SECRET = "KqW8m2Rz7yXc4vTn1LpJ6hGf3dSa9bQe0uIo5tYx"
OTHER_SECRET = "Zq8w7E6r5T4y3U2i1O0p9A8s7D6f5G4h3J2k1L0z"
Era = Literal["auto", "legacy"]
ERAS: tuple[Era, ...] = ("auto", "legacy")
READY_WITHIN = 30.0


KEYS = Keys(AUDIENCE, SECRET)


def token(*scopes: str, subject: str = "tester", targets: str | None = None, keys: Keys = KEYS) -> str:
    return mint(keys, subject, scopes or ("admin",), 3600, targets)[0]


def by_token(gateway: Gateway) -> Authentication:
    """Tokens of `KEYS`, and a ledger beside the gateway's audit log."""
    return Authentication(Tokens(KEYS, Ledger(gateway.journal.log.path.with_name("tokens.sqlite"))))


@dataclass(frozen=True)
class Served:
    """Where a gateway listens. `url` ends in /mcp."""

    url: str
    server: FastMCP | None = None

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/mcp")

    def client(self, mode: Era, *scopes: str, **fields: Any) -> Client[Any]:
        bearing = {"Authorization": f"Bearer {token(*scopes)}"}
        return Client(StreamableHttpTransport(self.url, headers=bearing), mode=mode, **fields)


@asynccontextmanager
async def served(
    gateway: Gateway,
    authentication: Authentication | None = None,
    sessions: SessionLimits = USUAL,
    **more: Any,
) -> AsyncIterator[Served]:
    """Serve a gateway over HTTP in this event loop; without `authentication` to tokens of `KEYS`. `more` settings."""
    settings = Settings.model_validate({"MCP_PORT": 0, "SYSTEMMANAGER_SHARED_SECRET": SECRET, **more})
    modes = authentication or by_token(gateway)
    server = build(gateway, caller_of(gateway, modes))
    async with listening(http_app(server, gateway, settings, modes, sessions=sessions), settings) as port:
        yield Served(f"http://127.0.0.1:{port}/mcp", server=server)


BEARER = {"Authorization": f"Bearer {token()}"}
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


@asynccontextmanager
async def http(tmp_path: Path) -> AsyncIterator[tuple[Served, httpx.AsyncClient]]:
    async with real_gateway(tmp_path, target("local")) as gateway, served(gateway) as there:
        async with httpx.AsyncClient(base_url=there.origin) as client:
            yield there, client


@dataclass
class Running:
    """A `systemmanager serve` process."""

    process: subprocess.Popen[bytes]
    log: Path
    state: Path
    url: str = ""
    ready_after: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, event: str, within: float = READY_WITHIN, count: int = 1) -> dict[str, Any]:
        """The log line of an event, waited for."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            found = [line for line in self.lines() if line.get("event") == event]
            if len(found) >= count:
                return found[-1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError(f"no {event!r} within {within} s: {self.log.read_text()}")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "systemmanager/audit.jsonl").read_text().splitlines()]


def environment(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    source = str(Path(__file__).parent.parent / "src")
    return {**kept, "PYTHONPATH": source, "XDG_STATE_HOME": str(folder / "state"), "MCP_PORT": "0", **settings}


def command(folder: Path, *words: str) -> None:
    """What the operator types at the terminal of a gateway with its state below `folder`."""
    given = environment(folder, SYSTEMMANAGER_SHARED_SECRET=SECRET, SYSTEMMANAGER_BASE_URL=AUDIENCE)
    argv = [sys.executable, "-m", "systemmanager", *words]
    subprocess.run(argv, env=given, check=True, capture_output=True, timeout=60)


@contextmanager
def serving(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A `systemmanager serve` process with its state below `folder`; killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    given = {"SYSTEMMANAGER_SHARED_SECRET": SECRET, "SYSTEMMANAGER_BASE_URL": AUDIENCE, **(settings or {})}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "systemmanager", "serve"],
            env=environment(folder, **given),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    running = Running(process, log, folder / "state")
    try:
        running.url = running.wait_for("ready")["url"]
        running.ready_after = time.monotonic() - started
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
