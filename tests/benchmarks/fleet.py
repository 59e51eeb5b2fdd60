"""A fleet over SSH: one sshd on many loopback addresses; the gateway, bare asyncssh and the usual tools in one run."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import yaml
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from systemmanager.server.auth.tokens import mint
from systemmanager.target import Target
from tests.benchmarks.calls import AUDIENCE, KEYS, SECRET, free_port
from tests.benchmarks.measure import Row, interleaved, python
from tests.real.openssh import SshServer, SshServers
from tests.support import OPERATOR, real_gateway

FILES = ("/proc/stat", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/self/mounts")
COMMAND = "cat /proc/net/dev"
OPTIONS = ("MaxStartups 2000:1:4000", "MaxSessions 10", "UseDNS no")
FAST: dict[str, Any] = {
    "config": [],
    "agent_path": None,
    "gss_host": None,
    "kex_algs": ["curve25519-sha256"],
    "encryption_algs": ["aes128-gcm@openssh.com"],
    "server_host_key_algs": ["ssh-ed25519"],
    "compression_algs": ["none"],
}


def host(number: int) -> str:
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def targets(server: SshServer, count: int) -> list[Target]:
    connection = {"host_key": server.host_key}
    return [server.target(f"t{n:03}", connection={**connection, "host": host(n)}) for n in range(count)]


class Bare:
    """asyncssh as a careful program would use it: parsed keys, the fastest safe algorithms, kept connections."""

    def __init__(self, server: SshServer, count: int) -> None:
        self._hosts = [host(number) for number in range(count)]
        key = asyncssh.import_public_key(server.host_key)
        known: Any = ([key], [], [], [], [], [], [])
        keys = [asyncssh.read_private_key(str(server.client_key))]
        self._options = {**FAST, "port": server.port, "username": "root", "client_keys": keys, "known_hosts": known}
        self._stack = AsyncExitStack()
        self._kept: list[tuple[asyncssh.SSHClientConnection, asyncssh.SFTPClient]] = []

    async def connect(self) -> None:
        async def one(name: str) -> tuple[asyncssh.SSHClientConnection, asyncssh.SFTPClient]:
            connection = await asyncssh.connect(name, **self._options)
            return connection, await connection.start_sftp_client()

        self._kept = list(await asyncio.gather(*map(one, self._hosts)))

    async def close(self) -> None:
        for connection, _ in self._kept:
            connection.close()
        await asyncio.gather(*(connection.wait_closed() for connection, _ in self._kept))
        self._kept = []

    async def read(self) -> None:
        """The files that a status is made of, and the root file system's size, of every host."""

        async def file(sftp: asyncssh.SFTPClient, path: str) -> None:
            async with sftp.open(path, "rb") as opened:
                await opened.read(65536)

        async def one(sftp: asyncssh.SFTPClient) -> None:
            await asyncio.gather(*(file(sftp, path) for path in FILES), sftp.statvfs("/"))

        await asyncio.gather(*(one(sftp) for _, sftp in self._kept))

    async def run(self) -> None:
        """One command on every host."""
        await asyncio.gather(*(connection.run(COMMAND, check=True) for connection, _ in self._kept))

    async def first_contact(self) -> None:
        await self.connect()
        await self.read()
        await self.close()


def write_registry(folder: Path, fleet: list[Target]) -> Path:
    body = {
        one.id: one.model_dump(mode="json", exclude_defaults=True) | {"id": one.id, "executor": "ssh"} for one in fleet
    }
    path = folder / "targets.yaml"
    path.write_text(yaml.safe_dump({"version": "1.0", "targets": body}))
    return path


@asynccontextmanager
async def served(folder: Path, fleet: list[Target]) -> AsyncIterator[tuple[Client[Any], psutil.Process]]:
    """`systemmanager serve` over a fleet, and an MCP client of it."""
    port = free_port()
    settings = {
        "MCP_PORT": str(port),
        "SYSTEMMANAGER_SHARED_SECRET": SECRET,
        "SYSTEMMANAGER_BASE_URL": AUDIENCE,
        "SYSTEMMANAGER_STATE_DIR": str(folder / "state"),
        "SYSTEMMANAGER_TARGETS_CONFIG": str(write_registry(folder, fleet)),
        "LOG_LEVEL": "ERROR",
    }
    with python("-m", "systemmanager", "serve", environment={**os.environ, **settings}) as process:
        await _listening(port)
        bearer = {"Authorization": f"Bearer {mint(KEYS, 'bench', ['admin'], 3600)[0]}"}
        async with Client(StreamableHttpTransport(f"http://127.0.0.1:{port}/mcp", headers=bearer)) as client:
            yield client, psutil.Process(process.pid)


async def _listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            await writer.wait_closed()
            return


def sweep(client: Client[Any], tool: str) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        answer = await client.call_tool(tool, {"targets": "*"}, raise_on_error=False)
        assert answer.structured_content and answer.structured_content["ok"], str(answer.content)[:500]

    return work


def other_tools(folder: Path, server: SshServer, count: int) -> dict[str, Callable[[], Awaitable[None]]]:
    """Sweeps by ansible (warm ControlPersist) and pyinfra, where they are installed."""
    command = "cat " + " ".join(FILES)
    kept = f"-o ControlMaster=auto -o ControlPersist=300 -o ControlPath={folder}/c-%h"
    ssh = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null {kept}"
    names = [host(number) for number in range(count)]
    (folder / "hosts").write_text(
        "\n".join(f"{name} ansible_port={server.port} ansible_user=root" for name in names)
        + f"\n[all:vars]\nansible_ssh_private_key_file={server.client_key}\nansible_ssh_common_args={ssh}\n"
    )
    data = {"ssh_port": server.port, "ssh_user": "root", "ssh_key": str(server.client_key)}
    data |= {"ssh_strict_host_key_checking": "no", "ssh_known_hosts_file": "/dev/null"}
    (folder / "inventory.py").write_text(f"hosts = {[(name, data) for name in names]!r}\n")
    found: dict[str, Callable[[], Awaitable[None]]] = {}
    if ansible := shutil.which("ansible"):
        words = [ansible, "all", "-i", str(folder / "hosts"), "-m", "raw", "-f", "50", "-a", command]
        found["ansible -m raw, warm"] = process(words, folder)
    if pyinfra := shutil.which("pyinfra"):
        found["pyinfra exec"] = process([pyinfra, "-y", str(folder / "inventory.py"), "exec", "--", command], folder)
    return found


def process(words: list[str], folder: Path) -> Callable[[], Awaitable[None]]:
    environment = {**os.environ, "HOME": str(folder), "ANSIBLE_HOST_KEY_CHECKING": "False", "LC_ALL": "C.UTF-8"}

    async def work() -> None:
        done = await asyncio.create_subprocess_exec(
            *words,
            cwd=folder,
            env=environment,
            stdin=-3,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await done.communicate()
        assert done.returncode == 0, output[-2000:].decode()

    return work


async def warm(folder: Path, server: SshServer, count: int) -> list[Row]:
    bare = Bare(server, count)
    await bare.connect()
    others = other_tools(folder, server, count)
    try:
        async with served(folder, targets(server, count)) as (client, _):
            status, counters = sweep(client, "get_system_status"), sweep(client, "get_network_io_counters")
            works = {"status": status, "bare": bare.read, "exec": counters, "bare exec": bare.run, **others}
            for work in works.values():
                await work()
            rounds = {name: work for name, work in works.items() if name not in others}
            seconds = await interleaved(works, 3) | await interleaved(rounds, 15)
    finally:
        await bare.close()
    found = [
        Row(f"get_system_status of {count} warm targets / bare asyncssh", seconds["status"], seconds["bare"], "s", 1.5),
        Row(f"one exec on {count} warm targets / bare asyncssh", seconds["exec"], seconds["bare exec"], "s", 1.3),
    ]
    promises = {"ansible -m raw, warm": 25.0, "pyinfra exec": 15.0}
    for name in others:
        what = f"get_system_status of {count}: faster than {name}"
        found.append(Row(what, seconds["status"], seconds[name], "s", promises[name], least=True))
    return found


async def cold(folder: Path, server: SshServer, count: int) -> Row:
    bare, fleet = Bare(server, count), targets(server, count)

    async def ours() -> None:
        async with real_gateway(folder, *fleet) as gateway:
            reply = await gateway.call(OPERATOR, "get_system_status", {"targets": "*"})
            assert reply.ok, reply.text()[:500]

    await ours()
    await bare.first_contact()
    seconds = await interleaved({"ours": ours, "bare": bare.first_contact}, 5)
    return Row(f"first contact with {count} targets / bare asyncssh", seconds["ours"], seconds["bare"], "s", 1.2)


async def memory(folder: Path, server: SshServer, count: int) -> Row:
    async with served(folder, targets(server, count)) as (client, process):
        await sweep(client, "get_system_status")()
        return Row(f"memory with {count} kept connections", process.memory_info().rss / 2**20, 150, "MiB", 1.0)


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = SshServers(Path(folder), stack).start(*OPTIONS, host="0.0.0.0")
        found: list[Row] = []
        for count in (50, 100):
            own = Path(folder, f"fleet-{count}")
            own.mkdir()
            found += asyncio.run(warm(own, server, count))
        own = Path(folder, "cold")
        own.mkdir()
        found.append(asyncio.run(cold(own, server, 50)))
        own = Path(folder, "many")
        own.mkdir()
        found.append(asyncio.run(memory(own, server, 500)))
        for name in ("ansible", "pyinfra"):
            if not shutil.which(name):
                print(f"not measured: {name} is not on PATH")
        return found
