"""Programs as children of the gateway, each in a process group of its own that ends whole."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from systemmanager.executors.bounded import Collected

GRACE = 0.5
"""Seconds that a finished command's children may hold its pipes, and that a killed group gets before SIGKILL."""


async def run_program(
    argv: Sequence[str],
    collected: Collected,
    env: Mapping[str, str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    holds: Sequence[int] = (),
) -> int:
    """Run one program to its end, or to the bound of what is collected; answers its status, below 0 for a signal.

    `holds` are descriptors that it has, too: a lock on one lasts for as long as it runs, whatever becomes of us.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=dict(env),
        cwd=cwd,
        pass_fds=tuple(holds),
    )
    try:
        await _until_end(process, collected, stdin)
    finally:
        with anyio.CancelScope(shield=True):
            await _end_group(process)
    return process.returncode if process.returncode is not None else -signal.SIGKILL


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
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal(process, number)
            if process.returncode is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), GRACE)
    finally:  # also when another cancellation comes meanwhile
        _signal(process, signal.SIGKILL)
        # A pipe that was not read to its end stays open otherwise; asyncio has no public way to close it.
        process._transport.close()  # type: ignore[attr-defined]


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
