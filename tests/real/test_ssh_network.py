"""Connections that start at a real SSH target, and its Docker Engine's socket."""

import asyncio
import os
import ssl
from pathlib import Path

import anyio
import pytest
from anyio.streams.tls import TLSStream

from systemmanager.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    NameNotResolved,
    TargetError,
    Unreachable,
    Unsupported,
)
from systemmanager.executors.vantage import resolvers
from tests.real.engine import Engine
from tests.real.openssh import SshServer, SshServers, blackhole
from tests.real.ssh_ports import Opened, ssh_executor
from tests.support import call, run, tcp_server


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"bye")


def test_bytes_go_both_ways_and_ends_are_seen(tmp_path: Path, ssh_server: SshServer) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened, tcp_server(echo) as port:
            network = await opened(ssh_server.target(), "Network")
            stream = await network.connect("127.0.0.1", port, 5)
            sent = os.urandom(3_000_000)
            received = bytearray()
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, sent)
                while len(received) < len(sent):
                    received += await stream.receive(10_000)
            assert received == sent
            await stream.send_eof()
            assert await stream.receive() == b"bye"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"x")

    run(work())


def test_a_slow_reader_holds_up_the_sender_not_the_memory(tmp_path: Path, ssh_server: SshServer) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while sent < 200_000_000:
                writer.write(bytes(1_000_000))
                sent += 1_000_000
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened, tcp_server(flood) as port:
            stream = await (await opened(ssh_server.target(), "Network")).connect("127.0.0.1", port, 5)
            await stream.receive(10)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 50_000_000
            await stream.aclose()

    run(work())


def test_tls_runs_over_it(tmp_path: Path, ssh_server: SshServer) -> None:
    """A handshake with what speaks no TLS fails as TLS does, so the wrapping works."""

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened, tcp_server(echo) as port:
            stream = await (await opened(ssh_server.target(), "Network")).connect("127.0.0.1", port, 5)
            with pytest.raises(ssl.SSLError):
                await TLSStream.wrap(stream, hostname="localhost", ssl_context=ssl.create_default_context())
            await stream.aclose()

    run(work())


@pytest.mark.parametrize(
    ("host", "port", "error", "reason"),
    [
        ("127.0.0.1", 1, Unreachable, "refused"),
        ("no-such-host.invalid", 80, NameNotResolved, None),
        (None, None, DeadlineExceeded, "timeout"),
    ],
)
def test_a_connection_that_fails_is_named(
    tmp_path: Path, ssh_server: SshServer, host: str | None, port: int, error: type[TargetError], reason: str | None
) -> None:
    async def work() -> None:
        with blackhole() as hole:
            async with ssh_executor(tmp_path) as opened:
                network = await opened(ssh_server.target(), "Network")
                with pytest.raises(error) as caught:
                    await network.connect(host or hole[0], port or hole[1], 0.5 if host is None else 5)
                assert (caught.value.details or {}).get("reason") == reason

    run(work())


def test_a_target_that_forwards_nothing_is_said(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start("AllowTcpForwarding no")

    async def work(opened: Opened) -> None:
        with pytest.raises(Unsupported, match="does not let SSH forward") as caught:
            await (await opened(server.target(), "Network")).connect("127.0.0.1", server.port, 5)
        assert "AllowTcpForwarding" in str(caught.value.hint)

    async def wrapped() -> None:
        async with ssh_executor(tmp_path) as opened:
            await work(opened)

    run(wrapped())


def test_name_servers_and_a_program_at_the_targets_vantage(tmp_path: Path, ssh_server: SshServer) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            network = await opened(ssh_server.target(), "Network")
            assert await network.nameservers() == resolvers(await anyio.Path("/etc/resolv.conf").read_text())
            assert (await network.run("echo", "hello")).stdout == "hello\n"
            with pytest.raises(Unsupported):
                await network.echo("127.0.0.1", 1)

    run(work())


# --- Docker over SSH -------------------------------------------------------------------------------------------------


def test_the_engine_of_a_target_answers_over_its_ssh_connection(
    tmp_path: Path, ssh_server: SshServer, engine: Engine
) -> None:
    target = ssh_server.target(connection={"docker_socket": str(engine.socket)})
    found = call(tmp_path, "get_container_list", {"target": "web-01"}, target)["results"][0]
    assert found["ok"], found
    assert not list((tmp_path / "run").glob("*.sock"))


def test_a_state_folder_too_deep_for_a_socket_is_said(tmp_path: Path, ssh_server: SshServer, engine: Engine) -> None:
    target = ssh_server.target(connection={"docker_socket": str(engine.socket)})
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    error = call(deep, "get_container_list", {"target": "web-01"}, target)["results"][0]["error"]
    assert error["code"] == "engine_unavailable" and "SYSTEMMANAGER_STATE_DIR" in error["hint"], error


@pytest.mark.parametrize("line", ["AllowStreamLocalForwarding no", "AllowStreamLocalForwarding yes"])
def test_an_engine_that_is_not_to_be_had_is_said(tmp_path: Path, ssh_servers: SshServers, line: str) -> None:
    server = ssh_servers.start(line)

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            with pytest.raises(EngineUnavailable, match="no Docker Engine answers") as caught:
                await opened(server.target(connection={"docker_socket": "/nonexistent.sock"}), "Docker")
            assert "AllowStreamLocalForwarding" in str(caught.value.hint)

    run(work())
