"""Where an attack takes place: a gateway with a small fleet, and canaries wherever an effect could show."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from systemmanager.approvals.desk import Desk
from systemmanager.approvals.store import ApprovalStore
from systemmanager.gateway import Gateway
from systemmanager.policyfile import BUILTIN
from systemmanager.stacks import StackRules
from systemmanager.target import Target
from tests.serving import OTHER_SECRET, SECRET
from tests.support import real_gateway, target

CANARY = "canary-SECRET-" + "q7Zr2mXw9LkT4vBs"
"""Stands in every file that must not be read; the gateway does not know it as a secret."""
HELD = "Held7Secret9Value3Of5The1Gateway"
"""A credential of a target, which the gateway holds and must never tell."""

PROGRAMS = (
    "apt-cache", "apt-get", "cat", "dig", "dnf", "docker", "dpkg-query", "getent", "git", "hostname", "journalctl",
    "ping", "ps", "rpm", "ss", "ssh", "stat", "sudo", "systemctl", "tracepath", "traceroute", "getcap", "find",
)  # fmt: skip


class Sinks:
    """A TCP port and a unix socket where nobody may come; whoever does is counted and hung up on."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.port = 0

    @asynccontextmanager
    async def open(self, socket_path: Path) -> AsyncIterator[None]:
        async def by_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._one("the sink", reader, writer)

        async def by_socket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._one("docker.sock", reader, writer)

        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(await asyncio.start_server(by_tcp, "127.0.0.1", 0))
            self.port = server.sockets[0].getsockname()[1]
            await stack.enter_async_context(await asyncio.start_unix_server(by_socket, str(socket_path)))
            yield

    async def _one(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            first = await asyncio.wait_for(reader.read(200), 0.2)
            self.came.append(f"{name} got {first!r}")
        writer.transport.abort()
        await asyncio.sleep(0)


class Arena:
    """One attack's surroundings below `folder`. The gateway finds recorders in place of all programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.canary, self.bin, self.root = folder / "canary", folder / "bin", folder / "root"
        self.outside, self.argv, self.socket = folder / "outside", folder / "argv", folder / "docker.sock"
        self.sinks = Sinks()
        self.arrived: Mapping[str, Mapping[str, str | None]] = {}
        """What came of each case's value in each login shell, where it was sent: None when it arrived as it was."""
        for place in (self.state, self.canary, self.bin, self.root, self.outside, folder / "root2", self.root / "deep"):
            place.mkdir(mode=0o755)
        self._programs()
        self._files()

    @property
    def names(self) -> Mapping[str, str]:
        """What the placeholders of a case stand for."""
        return {
            "canary": str(self.canary),
            "root": str(self.root),
            "outside": str(self.outside),
            "state": str(self.state),
            "folder": str(self.folder),
            "sink": str(self.sinks.port),
            "secret": SECRET,
            "other": OTHER_SECRET,
            "CANARY": CANARY,
            "HELD": HELD,
            "socket": str(self.socket),
        }

    def program(self, name: str, body: str) -> None:
        """Have a program do something, after it has noted its arguments."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(
            f'#!/bin/sh\nprintf "%s\\0" "${{0##*/}}" "$@" >>{self.argv}\nprintf "\\n" >>{self.argv}\n{body}\n'
        )
        path.chmod(0o755)

    def _programs(self) -> None:
        self.program("recorder", "")
        for name in PROGRAMS:
            (self.bin / name).symlink_to("recorder")

    def _files(self) -> None:
        """An allowed folder, and every way out of it."""
        root, outside = self.root, self.outside
        for place in (outside / "secret.txt", self.folder / "root2" / "secret.txt"):
            place.write_text(f"password: {CANARY}\n{CANARY}\n")
        (root / "plain.txt").write_text("nothing to hide\n")
        for name, leads in {
            "link": outside / "secret.txt",
            "folder-link": outside,
            "relative-link": Path("../outside/secret.txt"),
            "chain": root / "link",
            "loop": root / "loop",
            "dangling": root / "not there",
            "proc-link": Path("/proc/self/environ"),
            "own-link": self.state / "protected" / "shared_secret",
            "fd-link": Path("/proc/self/root") / str(outside / "secret.txt").lstrip("/"),
        }.items():
            (root / name).symlink_to(leads)
        os.mkfifo(root / "fifo")
        own = self.state / "protected"
        own.mkdir(mode=0o700)
        (own / "shared_secret").write_text(CANARY)
        os.link(own / "shared_secret", root / "hardlink")

    def fleet(self) -> list[Target]:
        """`local` may do everything; each other one is limited in one way."""
        docker, allowed = {"socket_path": str(self.socket)}, {"paths": [str(self.root)], "sudo_policy": "limited"}
        web = {"tags": ["web"]}
        auth = {"type": "bearer", "token": HELD}

        def local(id: str, limits: Mapping[str, Any] | None = None, **fields: Any) -> Target:
            constraints = {**allowed, "hosts": None, **(limits or {})}
            return target(id, connection=docker, constraints=constraints, **fields)

        return [
            local("local"),
            local("web-1", capabilities=["readonly"], metadata=web),
            local("web-10", metadata={**web, "environment": "prod"}),
            local("bare", capabilities=[]),
            local("narrow", {
                "paths": [], "units": ["nginx"], "hosts": ["*.example.com", "127.0.0.2"], "ports": [443],
                "images": ["nginx", "registry.lan:5000/team/*"],
            }),
            local("closed", {"units": [], "hosts": [], "ports": [], "images": []}),
            local("by-name", {"hosts": ["*.example.com"]}),
            local("hasty", {"timeout": 2, "concurrency": 1}),
            local("no-sudo", {"sudo_policy": "none"}),
            local("on-purpose", {"hosts": ["127.0.0.1"]}),
            target("engine", "docker", connection=docker, constraints={"images": ["nginx"]}),
            target("api", "http", connection={"base_url": f"http://127.0.0.1:{self.sinks.port}", "auth": auth}),
        ]  # fmt: skip

    @asynccontextmanager
    async def gateway(self, **fields: Any) -> AsyncIterator[Gateway]:
        """The real gateway over the real executors."""
        fields.setdefault("policy", replace(BUILTIN, stacks=StackRules(hosts=("git.example",))))
        async with self.sinks.open(self.socket):
            async with real_gateway(self.state, *self.fleet(), secrets=frozenset({SECRET}), **fields) as gateway:
                gateway.desk = Desk(ApprovalStore(self.state / "approvals.sqlite"), gateway.journal)
                yield gateway

    def spoil_log(self, how: str) -> None:
        """Put something in the place of the audit log."""
        path = self.state / "audit.jsonl"
        if how == "folder":
            path.mkdir()
        elif how == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(self.canary / "not there" if how == "dangling" else self.outside / "secret.txt")

    def ran(self) -> list[list[str]]:
        """The programs that ran, with their arguments, in the order of their start."""
        lines = self.argv.read_text(errors="surrogateescape").split("\0\n")[:-1] if self.argv.exists() else []
        return [line.split("\0") for line in lines]

    def forget(self) -> None:
        """What has run so far was meant to."""
        self.argv.unlink(missing_ok=True)

    def left(self) -> list[str]:
        """What lies in the canary folder."""
        return [f"{path.name} appeared" for path in self.canary.rglob("*")]
