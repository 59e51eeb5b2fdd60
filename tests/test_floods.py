"""Too much at once: targets that hang, calls without end, clients that cancel. Others are served beside it."""

import asyncio
import gc
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from systemmanager.load import PATIENCE, room_aside
from systemmanager.running import GLOBAL_SLOTS
from systemmanager.target import Target
from tests.support import OPERATOR, operator, real_gateway, run, target, tcp_server
from tests.test_server_connections import until

HUNG = 1000
DEADLINE = 8.0
SLACK = 3.0
"""Seconds that a busy machine may take on top."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on every loopback address where connecting succeeds, and nothing is ever said."""
    with closing(socket.socket()) as listener:
        listener.bind(("0.0.0.0", 0))  # noqa: S104
        listener.listen(4096)
        yield listener.getsockname()[1]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(path)
    path.chmod(0o600)
    return path


def hung_targets(kind: str, port: int, key: Path, count: int = HUNG) -> list[Target]:
    limits = {"timeout": DEADLINE}
    found = []
    for number in range(count):
        host = f"127.1.{number // 250}.{number % 250 + 1}"
        connection: dict[str, Any] = {"host": host, "port": port, "username": "root"}
        connection |= {"host_key": f"SHA256:{'A' * 43}", "key_path": str(key)}
        if kind == "http":
            connection = {"base_url": f"http://{host}:{port}"}
        found.append(target(f"hung-{number}", kind, connection=connection, constraints=limits))
    return found


@asynccontextmanager
async def healthy_targets() -> AsyncIterator[list[Target]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()

    limits = {"timeout": DEADLINE}
    async with tcp_server(serve) as port:
        api = {"base_url": f"http://127.0.0.1:{port}"}
        web = [target(f"up-{number}", "http", connection=api, constraints=limits) for number in range(2)]
        yield [*web, target("up-local", constraints=limits)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def left_over(kind: str) -> int:
    """Connections of that kind that are still in memory."""
    gc.collect()
    name = {"ssh": "SSHClientConnection", "http": "AsyncHTTPConnection"}[kind]
    return sum(type(one).__name__ == name for one in gc.get_objects())


@pytest.mark.parametrize("kind", ["ssh", "http"])
def test_a_thousand_hung_targets_keep_nobody_from_the_healthy_ones(
    kind: str, silent_port: int, key: Path, tmp_path: Path
) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with healthy_targets() as healthy:
            async with real_gateway(tmp_path, *hung_targets(kind, silent_port, key), *healthy) as gateway:
                assert (await gateway.call(OPERATOR, "health_check", {"targets": "up-*"})).ok
                files, tasks, started = open_files(), len(asyncio.all_tasks()), loop.time()
                crowd = asyncio.create_task(gateway.call(OPERATOR, "health_check", {"targets": "*"}))
                while not crowd.done():
                    begun = loop.time()
                    other = await gateway.call(operator("other"), "health_check", {"targets": "up-*"})
                    assert other.ok and loop.time() - begun < PATIENCE + SLACK, other.as_dict()
                    await asyncio.wait([crowd], timeout=0.5)
                reply = (await crowd).as_dict()
                assert loop.time() - started < DEADLINE + SLACK
                codes = {one["target"]: "ok" if one["ok"] else one["error"]["code"] for one in reply["results"]}
                counted = Counter(codes.values())
                assert counted["ok"] == len(healthy) and counted.keys() <= {"ok", "deadline_exceeded", "unreachable"}
                assert counted["deadline_exceeded"] + counted["unreachable"] == HUNG
                assert all(codes[one.id] == "ok" for one in healthy)
                assert gateway.runner.shares.free == GLOBAL_SLOTS and gateway.runner.shares.aside == room_aside()
                assert not gateway._in_flight
                await until(lambda: len(asyncio.all_tasks()) <= tasks, "no task stays")
                await until(lambda: open_files() <= files + len(healthy), "no file stays open")
                await until(lambda: not left_over(kind), "no connection stays in memory")

    run(work())
