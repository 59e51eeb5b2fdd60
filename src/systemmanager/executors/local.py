"""The gateway's own machine."""

import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any

from systemmanager.errors import CommandFailed
from systemmanager.executors import Surroundings, unsupported
from systemmanager.executors.bounded import Collected, command_missing, find_program, finished, with_privilege
from systemmanager.executors.lasting import Lasting
from systemmanager.executors.programs import run_program
from systemmanager.ports import Output
from systemmanager.request import Permit
from systemmanager.target import Target


class LocalShell(Lasting):
    """Programs as children of the gateway, each in a process group of its own that ends whole."""

    def __init__(self, permit: Permit) -> None:
        self._permit = permit

    def is_root(self) -> bool:
        return os.geteuid() == 0

    async def run(
        self,
        *argv: str,
        privileged: bool = False,
        check: bool = True,
        partial: bool = False,
        latest: bool = False,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Output:
        command = with_privilege(argv, self._permit, root=self.is_root(), privileged=privileged, env=env)
        program = find_program(command[0])
        if program is None:
            raise command_missing(command[0])
        limit = self._permit.target.constraints.max_output_bytes
        collected = Collected(limit, latest=latest)
        environment = _environment() | dict(env or {})
        given = stdin.encode("utf-8", "surrogateescape")
        status = await run_program((program, *command[1:]), collected, environment, stdin=given)
        if status < 0 and not collected.full.is_set():
            raise CommandFailed(f"{argv[0]} was ended by {signal.Signals(-status).name}")
        output = Output(tuple(command), status, collected.text(0), collected.text(1), collected.cut)
        return finished(output, check=check, partial=partial, latest=latest, limit=limit)


def _environment() -> dict[str, str]:
    """What a child sees: no secret of the gateway, and messages in English that parsers know."""
    kept = ("PATH", "HOME", "USER", "LOGNAME", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C.UTF-8"}


class LocalProbe:
    async def probe(self) -> Mapping[str, str]:
        return {"kernel": os.uname().release}


def _module(name: str) -> Any:
    """What a port needs is imported when it is first asked for."""
    return import_module(f"systemmanager.executors.{name}")


class LocalExecutor:
    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    async def open(self, permit: Permit, port: str, stack: AsyncExitStack) -> Any:
        match port:
            case "Shell":
                return LocalShell(permit)
            case "Facts":
                return _module("local_facts").LocalFacts()
            case "Files":
                return _module("local_files").LocalFiles(permit, self._surroundings.own_files)
            case "Network":
                return _module("local_network").LocalNetwork(permit)
            case "Docker":
                socket = getattr(permit.target.connection, "socket_path", None)
                return await _module("docker").engine_at(f"unix://{socket}", permit, stack)
            case "Stacks":
                socket = getattr(permit.target.connection, "socket_path", None)
                return await _module("stacks").stacks_at(f"unix://{socket}", permit, stack, self._surroundings)
            case "Probe":
                return LocalProbe()
            case _:
                raise unsupported(permit, port)

    async def retire(self, targets: Iterable[Target]) -> None:
        pass

    async def aclose(self) -> None:
        if "systemmanager.executors.docker_client" in sys.modules:
            _module("docker_client").forget()


def create(surroundings: Surroundings) -> LocalExecutor:
    return LocalExecutor(surroundings)
