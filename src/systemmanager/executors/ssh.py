"""SSH targets: every port over one kept connection."""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncssh

from systemmanager.errors import EngineUnavailable
from systemmanager.executors import Surroundings, unsupported
from systemmanager.executors.docker_client import forget
from systemmanager.executors.ssh_connections import Connections, Kept, ssh
from systemmanager.executors.ssh_facts import SshFacts
from systemmanager.executors.ssh_files import SshFiles
from systemmanager.executors.ssh_network import SshNetwork
from systemmanager.executors.ssh_shell import SshShell
from systemmanager.request import Permit
from systemmanager.target import Target


class SshProbe:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def probe(self) -> Mapping[str, str]:
        try:
            await self._kept.ping()
        except asyncio.CancelledError:
            self._kept.suspect()
            raise
        server = str(self._kept.connection.get_extra_info("server_version") or "")
        key = self._kept.connection.get_server_host_key()
        return {"server": server.removeprefix("SSH-2.0-"), **({"host_key": key.get_fingerprint()} if key else {})}


class SshExecutor:
    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._connections = Connections(surroundings.known_hosts)

    async def open(self, permit: Permit, port: str, stack: AsyncExitStack) -> Any:
        async def use() -> Kept:
            kept = await self._connections.use(permit.target, permit.via)
            stack.callback(self._connections.release, kept)
            return kept

        kept = await use()
        match port:
            case "Shell":
                return SshShell(permit, kept, use, lambda: self._connections.anew(permit.target, permit.via))
            case "Facts":
                return SshFacts(permit, kept)
            case "Files":
                return SshFiles(permit, kept, self._surroundings.own_files)
            case "Network":
                return SshNetwork(permit, kept)
            case "Docker":
                path = await _forwarded(kept, permit, self._surroundings.runtime)
                return await import_module("systemmanager.executors.docker").engine_at(f"unix://{path}", permit, stack)
            case "Stacks":
                path = await _forwarded(kept, permit, self._surroundings.runtime)
                stacks = import_module("systemmanager.executors.stacks")
                return await stacks.stacks_at(f"unix://{path}", permit, stack, self._surroundings)
            case "Probe":
                return SshProbe(kept)
            case _:
                raise unsupported(permit, port)

    async def retire(self, targets: Iterable[Target]) -> None:
        await self._connections.retire(targets)

    async def aclose(self) -> None:
        await self._connections.aclose()


def create(surroundings: Surroundings) -> SshExecutor:
    return SshExecutor(surroundings)


async def _forwarded(kept: Kept, permit: Permit, runtime: Path) -> Path:
    """A private socket on the gateway that leads to the target's Docker Engine; made once per connection."""
    lock: asyncio.Lock = kept.memory.setdefault("docker lock", asyncio.Lock())
    async with lock:
        if "docker" in kept.memory:
            known: Path = kept.memory["docker"]
            return known
        remote = ssh(permit.target).docker_socket
        await _check(kept, remote)
        # Short: a unix socket's path has at most 107 bytes. Of the connection, so that two never share it.
        name = hashlib.sha256(f"{permit.target.id} {id(kept)}".encode()).hexdigest()[:16]
        path = runtime / f"{name}.sock"
        try:
            _private(path)
            listener = await kept.connection.forward_local_path(str(path), remote)
        except OSError as error:
            raise EngineUnavailable(
                f"no way to the Docker Engine of {permit.target.id!r} can be laid on the gateway: {error}",
                hint="Its state folder (SYSTEMMANAGER_STATE_DIR) must be writable, and its path well below 100 bytes.",
            ) from error

        def close() -> None:
            listener.close()
            forget(frozenset({f"unix://{path}"}))
            with suppress(OSError):
                path.unlink()

        kept.closers.append(close)
        kept.memory["docker"] = path
        return path


def _private(path: Path) -> None:
    """A free place in a folder that only the gateway may enter."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


async def _check(kept: Kept, remote: str) -> None:
    """Whether the target lets us reach its engine at all: a forwarded socket could only close without a word."""
    try:
        channel, _ = await kept.open(lambda: kept.connection.create_unix_connection(asyncssh.SSHUNIXSession, remote))
        channel.close()
    except asyncssh.ChannelOpenError as error:
        if kept.gone:
            raise kept.lost() from error
        raise EngineUnavailable(
            f"no Docker Engine answers at {remote} of {kept.target.id!r}",
            # sshd gives one and the same answer for all of these.
            hint="Is it running, is the target's user in the docker group, and does its sshd allow "
            "AllowStreamLocalForwarding and AllowTcpForwarding?",
        ) from error
