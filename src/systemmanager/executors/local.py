"""The gateway's own machine."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from typing import Any

import anyio

from systemmanager.errors import CommandFailed
from systemmanager.executors import Surroundings, unsupported
from systemmanager.executors.bounded import Collected, command_missing, find_program, finished, with_privilege
from systemmanager.ports import Output
from systemmanager.request import Permit
from systemmanager.target import Target

GRACE = 0.5
"""Seconds that a finished command's children may hold its pipes, and that a killed group gets before SIGKILL."""


class LocalShell:
    """Programs as children of the gateway, each in a process group of its own that ends whole."""

    def __init__(self, permit: Permit) -> None:
        self._permit = permit

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
        command = with_privilege(argv, self._permit, root=os.geteuid() == 0, privileged=privileged, env=env)
        program = find_program(command[0])
        if program is None:
            raise command_missing(command[0])
        process = await asyncio.create_subprocess_exec(
            program,
            *command[1:],
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=_environment() | dict(env or {}),
        )
        limit = self._permit.target.constraints.max_output_bytes
        collected = Collected(limit, latest=latest)
        try:
            await _until_end(process, collected, stdin.encode())
        finally:
            with anyio.CancelScope(shield=True):
                await _end_group(process)
        status = process.returncode if process.returncode is not None else -signal.SIGKILL
        if status < 0 and not collected.full.is_set():
            raise CommandFailed(f"{argv[0]} was ended by {signal.Signals(-status).name}")
        output = Output(tuple(command), status, collected.text(0), collected.text(1), collected.cut)
        return finished(output, check=check, partial=partial, latest=latest, limit=limit)


def _environment() -> dict[str, str]:
    """What a child sees: no secret of the gateway, and messages in English that parsers know."""
    kept = ("PATH", "HOME", "USER", "LOGNAME", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C.UTF-8"}


async def _until_end(process: asyncio.subprocess.Process, collected: Collected, stdin: bytes) -> None:
    """Return when the program has ended and its pipes are drained, or when the output bound is reached."""
    assert process.stdout is not None and process.stderr is not None
    if process.stdin is not None:
        with suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(stdin)
            await process.stdin.drain()
        process.stdin.close()
    out, err = process.stdout.read, process.stderr.read
    readers: asyncio.Future[Any] = asyncio.gather(collected.drain(out, 0), collected.drain(err, 1))
    full: asyncio.Future[Any] = asyncio.ensure_future(collected.full.wait())
    ended: asyncio.Future[Any] = asyncio.ensure_future(_exit_of(process))
    try:
        await asyncio.wait([full, ended], return_when=asyncio.FIRST_COMPLETED)
        if not collected.full.is_set():
            await asyncio.wait([readers, full], timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiting in (readers, full, ended):
            waiting.cancel()
        await asyncio.gather(readers, full, ended, return_exceptions=True)


async def _exit_of(process: asyncio.subprocess.Process) -> None:
    """Return when the program itself has ended. `wait` may also wait for its pipes, which a child of its may hold."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel or a container without pidfd_open(2)
        await process.wait()
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End the whole process group: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if process.returncode is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
    # A pipe that was not read to its end stays open otherwise; asyncio has no public way to close it.
    process._transport.close()  # type: ignore[attr-defined]


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
