"""Kept connections of real SSH targets: who is let in, what is shared, what happens when the other side fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import (
    ConnectionLost,
    NameNotResolved,
    TargetError,
    Unreachable,
    Unsupported,
)
from systemmanager.executors.ssh_connections import Connections
from tests.real.openssh import SshServer, SshServers, blackhole, until
from tests.real.ssh_ports import Opened, probed, ssh_executor
from tests.support import OPERATOR, real_gateway, run, tcp_server


def kept_by(tmp_path: Path, work: Callable[[Opened], Awaitable[None]], *known_hosts: Path) -> None:
    async def wrapped() -> None:
        async with ssh_executor(tmp_path, *known_hosts) as opened:
            await work(opened)

    run(wrapped())


# --- The other side fails --------------------------------------------------------------------------------------------


def test_a_closed_port_is_unreachable(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start()
    server.stop()
    with pytest.raises(Unreachable, match="refused") as caught:
        probed(tmp_path, server.target())
    assert caught.value.retryable


def test_a_name_that_nobody_knows(tmp_path: Path, ssh_server: SshServer) -> None:
    with pytest.raises(NameNotResolved, match="no-such-host"):
        probed(tmp_path, ssh_server.target(connection={"host": "no-such-host.invalid"}))


def test_a_server_with_other_algorithms_is_said(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start("KexAlgorithms sntrup761x25519-sha512@openssh.com")
    with pytest.raises(Unreachable, match="no algorithm in common") as caught:
        probed(tmp_path, server.target())
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100_000], ids=["nothing", "http", "zeros"]
)
def test_what_is_no_ssh_server_is_unreachable(tmp_path: Path, ssh_server: SshServer, says: bytes) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)

    async def work() -> None:
        async with tcp_server(rude) as port, ssh_executor(tmp_path) as opened:
            with pytest.raises(Unreachable):
                await opened(ssh_server.target(connection={"host": "127.0.0.1", "port": port}), "Probe")

    run(work())


def test_a_blackhole_costs_only_the_deadline_of_its_own_target(tmp_path: Path, ssh_servers: SshServers) -> None:
    """Fan-out through the gateway: one dead target of three; the others answer at once."""
    frozen, fine = ssh_servers.start(), ssh_servers.start()
    frozen.freeze()
    with blackhole() as (host, port):
        targets = [
            fine.target("fine"),
            frozen.target("frozen", constraints={"timeout": 1.5}),
            fine.target("hole", connection={"host": host, "port": port}, constraints={"timeout": 1.5}),
        ]

        async def work() -> dict[str, Any]:
            async with real_gateway(tmp_path, *targets) as gateway:
                return (await gateway.call(OPERATOR, "get_system_status", {"targets": ["*"]})).as_dict()

        started = time.monotonic()
        results = {one["target"]: one for one in run(work())["results"]}
        assert time.monotonic() - started < 6
    frozen.thaw()
    assert results["fine"]["ok"] and results["fine"]["elapsed_ms"] < 1500
    for name in ("frozen", "hole"):
        error = results[name]["error"]
        assert error["code"] == "unreachable" and "within 1.125 s" in error["message"] and "down" in error["hint"]
        assert results[name]["elapsed_ms"] < 3000


def test_a_hung_connection_is_dropped_and_made_again(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start()

    async def work(opened: Opened) -> None:
        probe = await opened(server.target(), "Probe")
        await probe.probe()
        server.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await probe.probe()
        await asyncio.to_thread(until, lambda: probe._kept.gone, "the connection is given up")
        server.thaw()
        again = await opened(server.target(), "Probe")
        assert await again.probe()

    kept_by(tmp_path, work)


def test_a_lost_connection_is_made_again(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start(username=ssh_servers.account("sh"))

    async def work(opened: Opened) -> None:
        shell = await opened(server.target(), "Shell")
        running = asyncio.create_task(shell.run("sleep", "1000"))
        await asyncio.to_thread(until, lambda: "Starting session" in server.log, "the command runs")
        server.cut_connections()
        with pytest.raises(ConnectionLost, match="web-01"):
            await running
        assert (await (await opened(server.target(), "Shell")).run("echo", "back")).stdout == "back\n"

    kept_by(tmp_path, work)


def test_a_failed_connect_is_not_repeated_at_once_but_soon(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start()
    server.stop()

    async def work(opened: Opened) -> None:
        for _ in range(5):
            with pytest.raises(Unreachable):
                await opened(server.target(), "Probe")
        server.run()
        with pytest.raises(Unreachable):  # the very next call still gets the old answer
            await opened(server.target(), "Probe")
        deadline = time.monotonic() + 10
        while True:
            try:
                await (await opened(server.target(), "Probe")).probe()
                break
            except Unreachable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

    kept_by(tmp_path, work)


# --- Sharing ---------------------------------------------------------------------------------------------------------


def test_all_who_wait_share_one_connect_and_it_outlives_those_who_leave(
    tmp_path: Path, ssh_servers: SshServers
) -> None:
    server = ssh_servers.start()

    async def work(opened: Opened) -> None:
        server.freeze()
        waiting = [asyncio.create_task(opened(server.target(), "Probe")) for _ in range(6)]
        await asyncio.sleep(0.1)
        for task in waiting[:5]:
            task.cancel()
        await asyncio.gather(*waiting[:5], return_exceptions=True)
        server.thaw()
        assert await (await waiting[5]).probe()

    kept_by(tmp_path, work)
    assert server.log.count("Connection from") == 1


def test_a_connect_that_everybody_left_ends(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start()

    async def work(opened: Opened) -> None:
        server.freeze()
        task = asyncio.create_task(opened(server.target(), "Probe"))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.thaw()
        assert await (await opened(server.target(), "Probe")).probe()

    kept_by(tmp_path, work)


def test_many_targets_on_one_host_do_not_overrun_its_sshd(tmp_path: Path, ssh_servers: SshServers) -> None:
    """Stock MaxStartups is 10:30:100: of sixty parallel connects it drops a third."""
    server = ssh_servers.start()

    async def work(opened: Opened) -> None:
        probes = await asyncio.gather(*(opened(server.target(f"t{n}"), "Probe") for n in range(40)))
        await asyncio.gather(*(probe.probe() for probe in probes))

    kept_by(tmp_path, work)
    assert server.log.count("Accepted publickey") == 40


def test_a_retired_target_is_closed_after_its_last_call(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start(username=ssh_servers.account("sh"))
    connections = Connections(())

    async def work() -> None:
        kept = await connections.use(server.target())
        await connections.retire([server.target()])
        await kept.ping()
        connections.release(kept)
        async with asyncio.timeout(5):
            while not kept.gone:
                await asyncio.sleep(0.01)
        await connections.aclose()

    run(work())


# --- Jump hosts ------------------------------------------------------------------------------------------------------


def test_a_target_behind_two_jump_hosts(tmp_path: Path, ssh_servers: SshServers) -> None:
    first, second, last = (ssh_servers.start(username=ssh_servers.account("sh")) for _ in range(3))
    via = (first.target("first"), second.target("second"))

    async def work(opened: Opened) -> None:
        shells = await asyncio.gather(*(opened(last.target(f"t{n}"), "Shell", via) for n in range(12)))
        outputs = await asyncio.gather(*(shell.run("id", "-un") for shell in shells))
        assert {output.stdout for output in outputs} == {f"{last.username}\n"}

    kept_by(tmp_path, work)
    assert first.log.count("Accepted publickey") == second.log.count("Accepted publickey") == 1


@pytest.mark.parametrize(
    ("line", "stop", "error", "words"),
    [
        ("AllowTcpForwarding no", False, Unsupported, "jump host does not let SSH forward"),
        ("AllowTcpForwarding yes", True, Unreachable, "refused"),
    ],
)
def test_a_jump_host_that_does_not_get_there(
    tmp_path: Path, ssh_servers: SshServers, line: str, stop: bool, error: type[TargetError], words: str
) -> None:
    bastion, last = ssh_servers.start(line), ssh_servers.start()
    if stop:
        last.stop()
    with pytest.raises(error, match=words):
        probed(tmp_path, last.target(), via=(bastion.target("bastion"),))


def test_a_name_that_the_jump_host_does_not_know(tmp_path: Path, ssh_servers: SshServers) -> None:
    bastion = ssh_servers.start()
    with pytest.raises(NameNotResolved, match="no-such-host"):
        probed(tmp_path, bastion.target(connection={"host": "no-such-host.invalid"}), via=(bastion.target("bastion"),))
