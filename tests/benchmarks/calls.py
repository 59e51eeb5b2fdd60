"""What one call costs: the gateway's own share, and a whole tools/call over HTTP against a bare fastmcp server."""

import asyncio
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from systemmanager.request import Permit
from systemmanager.server.auth.tokens import Keys, mint
from tests.benchmarks.measure import Row, cpu_seconds, python
from tests.support import OPERATOR, fake_gateway, target

SECRET = "a-benchmark-secret-of-more-than-32-bytes-0123456789"
AUDIENCE = "http://gateway.bench:8080"
KEYS = Keys(AUDIENCE, SECRET)
CALLS, TURNS = 90, 7
SHARE_MS = 0.5


class _Instant:
    async def probe(self) -> dict[str, str]:
        return {"kernel": "6.1"}


async def own_share(calls: int = 2000, timer: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds of one single-target call on a port that answers at once, at the median."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:

        def port(permit: Permit, name: str) -> Any:
            return _Instant()

        clock = iter(range(0, 10_000_000, 60))  # a minute a call: the rate rule never says no
        gateway = fake_gateway(Path(folder), port, target("web-01"), clock=lambda: float(next(clock)))
        times = []
        for _ in range(calls):
            started = timer()
            reply = await gateway.call(OPERATOR, "health_check", {"target": "web-01"})
            reply.text()
            reply.as_dict()
            times.append(timer() - started)
            assert reply.ok
        gateway.journal.log.close()
    return statistics.median(times) * 1000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[int, psutil.Process, float]]]:
    """The gateway and the bare server, each in its process: port, process, seconds from exec to the first answer."""
    with ExitStack() as stack:
        found = {}
        for name in ("gateway", "bare"):
            port = free_port()
            settings = {
                "MCP_PORT": str(port),
                "SYSTEMMANAGER_SHARED_SECRET": SECRET,
                "SYSTEMMANAGER_BASE_URL": AUDIENCE,
                "SYSTEMMANAGER_STATE_DIR": str(folder),
            }
            environment = {**os.environ, **settings, "LOG_LEVEL": "ERROR"}
            words = (
                ["-m", "systemmanager", "serve"] if name == "gateway" else ["-m", "tests.benchmarks.bare", str(port)]
            )
            started = time.perf_counter()
            process = stack.enter_context(python(*words, environment=environment))
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.005)
            found[name] = (port, psutil.Process(process.pid), time.perf_counter() - started)
        yield found


def request(era: str, number: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of one tools/call of health_check."""
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": era}
    params: dict[str, Any] = {"name": "health_check", "arguments": {}}
    if era == "2026-07-28":
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "health_check"}
        client = {"name": "bench", "version": "1"}
        prefix = "io.modelcontextprotocol/"
        params["_meta"] = {
            f"{prefix}protocolVersion": era,
            f"{prefix}clientInfo": client,
            f"{prefix}clientCapabilities": {},
        }
    return headers, {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


async def session(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> dict[str, str]:
    """The handshake of the older era; answers the header that names the session."""
    accept = {"Accept": "application/json, text/event-stream"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    answer = await client.post(url, json=hello, headers=headers | accept)
    answer.raise_for_status()
    own = {"Mcp-Session-Id": answer.headers["mcp-session-id"]} if "mcp-session-id" in answer.headers else {}
    done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await client.post(url, json=done, headers=headers | accept | own)
    return own


async def per_call(era: str, running: dict[str, tuple[int, psutil.Process, float]]) -> dict[str, float]:
    """Milliseconds of server CPU per tools/call, in turns; each turn is an agent of its own, for the rate rule."""
    spent: dict[str, list[float]] = {name: [] for name in running}
    async with httpx.AsyncClient(timeout=30) as client:
        for turn in range(TURNS):
            for name, (port, process, _) in running.items():
                url = f"http://127.0.0.1:{port}/mcp"
                own = {"Authorization": f"Bearer {mint(KEYS, f'bench-{era}-{turn}', ['readonly'], 3600)[0]}"}
                own |= await session(client, url, own) if era != "2026-07-28" else {}
                before = cpu_seconds(process)
                for number in range(CALLS):
                    headers, body = request(era, number + 1)
                    answer = await client.post(url, json=body, headers=headers | own)
                    assert answer.status_code == 200 and "rate_limited" not in answer.text, answer.text
                if turn:  # the first turn warms up
                    spent[name].append((cpu_seconds(process) - before) / CALLS * 1000)
    return {name: statistics.mean(values) for name, values in spent.items()}


def rows() -> list[Row]:
    found = [Row("the gateway's own share of a call, median", asyncio.run(own_share()), SHARE_MS, "ms", 1.0)]
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as running:
        ready = running["gateway"][2]
        found.append(Row("ready after exec", ready, 1.5, "s", 1.0))
        found.append(Row("idle memory", running["gateway"][1].memory_info().rss / 2**20, 110, "MiB", 1.0))
        for era in ("2025-11-25", "2026-07-28"):
            cpu = asyncio.run(per_call(era, running))
            found.append(Row(f"CPU of one tools/call over HTTP, {era}", cpu["gateway"], cpu["bare"], "ms", 1.5))
    return found
