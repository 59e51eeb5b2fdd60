"""A stand-in for tailscaled's LocalAPI on a unix socket, and what it knows."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, bytes] | None
"""Status and body; None: no answer at all."""

CAPABILITY = "example.com/cap/systemmanager"
ALICE, RUNNER, OWN, STRANGER = "100.64.0.1", "100.64.0.2", "100.64.0.9", "192.0.2.1"


def person(login: str = "alice@example.com", caps: Any = None, **node: Any) -> dict[str, Any]:
    """What whois says of a person's machine."""
    return {
        "Node": {"ID": 1, "StableID": "nAlice1CNTRL", "Name": "desk.tail1.ts.net.", "User": 7, **node},
        "UserProfile": {"ID": 7, "LoginName": login, "DisplayName": "Alice"},
        "CapMap": caps,
    }


def tagged(*tags: str, caps: Any = None) -> dict[str, Any]:
    return person("tagged-devices", caps, StableID="nRunner2CNTRL", Tags=list(tags))


@dataclass
class Tailscaled:
    """Whom it knows by address, and how it behaves; `behave` may answer in its place."""

    path: Path
    known: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {ALICE: person(), RUNNER: tagged("tag:ci"), OWN: person(StableID="nOwn9CNTRL")}
    )
    behave: Callable[[str], Answer] | None = None
    asked: list[str] = field(default_factory=list)

    def answer(self, url: str, host: str) -> Answer:
        parts = urlsplit(url)
        self.asked.append(parts.path.rpartition("/")[2])
        if self.behave is not None:
            return self.behave(parts.path)
        if host != "local-tailscaled.sock":
            return 403, b"invalid localapi request"
        if parts.path == "/localapi/v0/status":
            return 200, json.dumps({"Self": {"ID": "nOwn9CNTRL", "TailscaleIPs": [OWN]}}).encode()
        address = parse_qs(parts.query)["addr"][0].rpartition(":")[0].strip("[]")
        if parts.path != "/localapi/v0/whois" or address not in self.known:
            return 404, b"no match for IP:port"
        return 200, json.dumps(self.known[address]).encode()


@asynccontextmanager
async def tailscaled(folder: Path) -> AsyncIterator[Tailscaled]:
    """Serve a stand-in below `folder`."""
    one, tasks = Tailscaled(folder / "tailscaled.sock"), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(OSError):
                while line := await reader.readline():
                    host = ""
                    while (header := await reader.readline()) not in (b"\r\n", b""):
                        name, _, value = header.decode().partition(":")
                        host = value.strip() if name.lower() == "host" else host
                    answer = one.answer(line.decode().split(" ")[1], host)
                    if answer is None:
                        await asyncio.Event().wait()
                        return
                    head = f"HTTP/1.1 {answer[0]} X\r\nContent-Length: {len(answer[1])}\r\n\r\n"
                    writer.write(head.encode() + answer[1])
                    await writer.drain()
        except asyncio.CancelledError:
            return
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)
            tasks.discard(task)

    async with await asyncio.start_unix_server(serve, one.path) as server:
        try:
            yield one
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
