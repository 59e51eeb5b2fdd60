"""Facts of a real SSH target, held against psutil on the same machine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import ConnectionLost, UnreadableOutput, Unsupported
from systemmanager.executors.local_facts import LocalFacts
from tests.conftest import need
from tests.real.openssh import SshServer, SshServers
from tests.real.ssh_ports import ssh_executor
from tests.support import run


def both(tmp_path: Path, server: SshServer, method: str) -> tuple[Any, Any]:
    """What SSH says and what psutil says, asked one after the other."""

    async def work() -> tuple[Any, Any]:
        async with ssh_executor(tmp_path) as opened:
            facts = await opened(server.target(), "Facts")
            return await getattr(facts, method)(), await getattr(LocalFacts(), method)()

    return run(work())


def test_status_agrees_with_psutil(tmp_path: Path, ssh_server: SshServer) -> None:
    seen, local = both(tmp_path, ssh_server, "status")
    assert (seen.hostname, seen.system, seen.cpu.cores) == (local.hostname, local.system, local.cpu.cores)
    assert abs(seen.uptime - local.uptime) <= 2
    assert 0 <= seen.cpu.percent <= 100 and len(seen.cpu.load) == 3
    assert (seen.memory.total, seen.memory.swap_total) == (local.memory.total, local.memory.swap_total)
    assert abs(seen.memory.available - local.memory.available) < 0.1 * local.memory.total
    shape = [(disk.mount, disk.device, disk.filesystem, disk.total) for disk in local.disks]
    assert [(disk.mount, disk.device, disk.filesystem, disk.total) for disk in seen.disks] == shape
    assert all(abs(a.percent - b.percent) < 2 for a, b in zip(seen.disks, local.disks, strict=True))


def test_a_status_forks_nothing_on_the_target(tmp_path: Path, ssh_server: SshServer) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            facts = await opened(ssh_server.target(), "Facts")
            first = await facts.status()
            before = {process.pid for process in ssh_server.processes()}
            for _ in range(5):
                again = await facts.status()
                assert again.memory.total == first.memory.total
            assert {process.pid for process in ssh_server.processes()} <= before

    run(work())


def test_cpu_percent_is_of_the_time_between_two_calls(tmp_path: Path, ssh_server: SshServer) -> None:
    async def work() -> float:
        async with ssh_executor(tmp_path) as opened:
            facts = await opened(ssh_server.target(), "Facts")
            await facts.status()
            with burning():
                await asyncio.sleep(0.5)
                percent: float = (await facts.status()).cpu.percent
                return percent

    assert run(work()) > 60


@contextmanager
def burning() -> Iterator[None]:
    """All cores busy."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process with words in its command line that a careless reader takes apart."""
    command = [sys.executable, "-c", "input()", "two words", "new\nline", "1/cmdline:forged", "é"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def test_processes_agree_with_psutil(tmp_path: Path, ssh_server: SshServer) -> None:
    with child() as process:
        seen, local = both(tmp_path, ssh_server, "processes")
        by_ssh, by_psutil = {one.pid: one for one in seen}, {one.pid: one for one in local}
        shared = [pid for pid in by_ssh.keys() & by_psutil.keys() if pid in (1, process.pid, os.getpid())]
        assert process.pid in shared and os.getpid() in shared
        for pid in shared:
            a, b = by_ssh[pid], by_psutil[pid]
            assert (a.name, a.user, a.command.strip()) == (b.name, b.user, b.command.strip())
            assert abs(a.rss - b.rss) < 64 * 1024 * 1024 and abs(a.memory - b.memory) < 1
        assert "1/cmdline:forged" in by_ssh[process.pid].command
        missing = by_psutil.keys() - by_ssh.keys()
        assert len(missing) < 0.2 * len(by_psutil) + 10


def test_interfaces_agree_with_psutil(tmp_path: Path, ssh_server: SshServer) -> None:
    seen, local = both(tmp_path, ssh_server, "interfaces")
    steady = ("lo", "eth0", "docker0")
    a = {one.name: one.model_dump() | {"addresses": set(one.addresses)} for one in seen if one.name in steady}
    b = {one.name: one.model_dump() | {"addresses": set(one.addresses)} for one in local if one.name in steady}
    assert "lo" in a and a == b


def test_counters_agree_with_psutil(tmp_path: Path, ssh_server: SshServer) -> None:
    seen, local = both(tmp_path, ssh_server, "counters")
    a, b = ({one.name: one for one in found} for found in (seen, local))
    assert "lo" in a
    assert 0 <= b["lo"].bytes_received - a["lo"].bytes_received < 50_000_000
    for name in a.keys() & b.keys():
        assert a[name].errors_in == b[name].errors_in and a[name].drops_out <= b[name].drops_out + 5


def test_connections_agree_with_psutil(tmp_path: Path, ssh_server: SshServer) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.create_connection(server.getsockname()) as client,
    ):
        udp.bind(("127.0.0.1", 0))
        seen, local = both(tmp_path, ssh_server, "connections")
        ports = {f":{one.getsockname()[1]}" for one in (server, six, udp, client)}
        ours = [
            {one.model_dump_json() for one in found if f":{one.local.rpartition(':')[2]}" in ports}
            for found in (seen, local)
        ]
        assert ours[0] == ours[1] and len(ours[0]) >= 5


@pytest.mark.parametrize("sftp", [False, True], ids=["no sftp", "loud shell"])
def test_a_target_without_sftp_is_said(tmp_path: Path, ssh_servers: SshServers, sftp: bool) -> None:
    lines = ["Subsystem sftp /bin/echo you are not welcome here at all"] if sftp else []
    server = ssh_servers.start(*lines, sftp=False, username=ssh_servers.account("sh"))

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            facts = await opened(server.target(), "Facts")
            for _ in range(12):  # a failed one must not keep its place among the eight sessions
                with pytest.raises((Unsupported, UnreadableOutput), match="SFTP") as caught:
                    await facts.status()
                assert caught.value.hint

    run(work())


def test_a_killed_sftp_server_is_replaced(tmp_path: Path, ssh_servers: SshServers) -> None:
    program = "/usr/lib/openssh/sftp-server"
    need("ssh", None if Path(program).exists() else f"there is no {program}")
    server = ssh_servers.start(f"Subsystem sftp {program}", sftp=False, username=ssh_servers.account("sh"))

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            facts = await opened(server.target(), "Facts")
            await facts.status()
            for process in server.processes():
                if process.name() == "sftp-server":
                    process.send_signal(signal.SIGKILL)
                    process.wait(5)
            try:
                await facts.status()
            except ConnectionLost:
                await facts.status()

    run(work())
