"""Kept connections: one per target and route, shared by all calls, made again with backoff when it is lost."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import asyncssh

from systemmanager.addresses import parse
from systemmanager.errors import ConnectionLost, TargetError
from systemmanager.executors.ssh_dial import CONNECT_TIMEOUT, Client, dial
from systemmanager.target import SshConnection, Target

T = TypeVar("T")
S = TypeVar("S", bound="Session")

SESSIONS = 8
"""Session channels at a time on one connection: sshd's MaxSessions is 10, and the 11th fails."""
CONNECTS = 8
"""Connects in flight to one host, or through one jump host: sshd's MaxStartups drops what comes beyond ten."""
OPEN_AGAIN = (0.01, 0.03, 0.1, 0.3)
BACKOFF, LONGEST_BACKOFF = 0.25, 10.0
PING_TIMEOUT = 3.0


def ssh(target: Target) -> SshConnection:
    """How an SSH target is reached."""
    assert target.executor == "ssh"
    return target.connection


@dataclass(eq=False)
class Kept:
    """One open connection. `uses` counts the calls and inner connections that need it.

    `memory` is where ports keep what lives as long as the connection: the SFTP channel, samples, a forwarded socket;
    `closers` run when it ends.
    """

    target: Target
    connection: asyncssh.SSHClientConnection
    client: Client
    outer: "Kept | None" = None
    uses: int = 0
    retired: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    closers: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sessions = asyncio.Semaphore(SESSIONS)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def gone(self) -> bool:
        return self.client.gone

    def lost(self) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.target.id!r} was lost")

    @property
    def same_machine(self) -> bool:
        """Whether the target is the gateway's own machine, as far as the connection's two ends tell."""
        here, there = (self.connection.get_extra_info(name) or ("",) for name in ("sockname", "peername"))
        address = parse(str(there[0]))
        return self.outer is None and address is not None and (address.is_loopback or here[0] == there[0])

    async def session(self, session: S, **how: Any) -> S:
        """Open a session channel (exec or subsystem); its place among the eight is free when it has closed."""
        await self.sessions.acquire()
        session.closed_call = self.sessions.release
        try:
            for wait in OPEN_AGAIN:
                try:
                    await self._open_session(session, how)
                    return session
                except asyncssh.ChannelOpenError:
                    if session.opened or self.gone:
                        raise
                # sshd reads our close and our next open together, and counts the session until it has tidied up.
                await asyncio.sleep(wait)
            await self._open_session(session, how)
            return session
        finally:
            if not session.opened:
                session.closed_call = None
                self.sessions.release()

    async def _open_session(self, session: "Session", how: dict[str, Any]) -> None:
        await self.open(lambda: self.connection.create_session(lambda: session, encoding=None, **how))

    async def open(self, attempt: Callable[[], Awaitable[tuple[Any, T]]]) -> tuple[Any, T]:
        """Open a channel; when the caller goes away meanwhile, the channel is closed as soon as it is open.

        Without that, a cancelled command would be started on the target after all, and nobody would end it.
        """
        if self.gone:
            raise self.lost()
        task = asyncio.ensure_future(attempt())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(_close_channel)
            raise
        except (asyncssh.DisconnectError, OSError) as error:
            raise self.lost() from error

    def suspect(self) -> None:
        """A call got no answer in its time: ask the connection for a sign of life, and drop it when none comes."""
        if self.gone or self.memory.get("asking"):
            return
        self.memory["asking"] = True
        task = asyncio.ensure_future(self._check())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self.ping()
        except (TimeoutError, TargetError):
            self.connection.abort()
        finally:
            self.memory["asking"] = False

    async def ping(self) -> None:
        """One round trip. asyncssh has no public call for that."""
        try:
            await self.connection._make_keepalive_request()
        except (asyncssh.Error, OSError) as error:
            raise self.lost() from error

    async def aclose(self) -> None:
        """Close it, bounded: a peer that hangs does not hold us up."""
        self.connection.close()
        with anyio.CancelScope(shield=True):
            try:
                async with asyncio.timeout(1):
                    await self.connection.wait_closed()
            except TimeoutError:
                self.connection.abort()
                await self.connection.wait_closed()
            await asyncio.gather(*self._tasks, return_exceptions=True)


class Session(asyncssh.SSHClientSession[bytes]):
    """The base of what runs on a session channel."""

    def __init__(self) -> None:
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.opened = False
        self.closed = False
        self.closed_call: Callable[[], None] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.channel, self.opened = chan, True

    def eof_received(self) -> bool:
        return True  # without this, asyncssh closes the channel, and so ends a program that closes its output early

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.closed_call:
            self.closed_call()
            self.closed_call = None


def _close_channel(task: "asyncio.Task[tuple[Any, Any]]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result()[0].close()


Key = tuple[Any, ...]


@dataclass(eq=False)
class _Slot:
    """The place of one connection: the connection, the attempt that makes it, or why the last attempt failed."""

    kept: Kept | None = None
    task: "asyncio.Task[Kept] | None" = None
    waiting: int = 0
    failures: int = 0
    error: TargetError | None = None
    retry_at: float = 0.0


class Connections:
    def __init__(self, known_hosts: tuple[Path, ...]) -> None:
        self._known_hosts = known_hosts
        self._slots: dict[Key, _Slot] = {}
        self._gates: dict[Any, asyncio.Semaphore] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def use(self, target: Target, via: tuple[Target, ...] = ()) -> Kept:
        """The connection to a target, made if there is none; give it back with `release`. Raises `TargetError`."""
        slot = self._slots.setdefault(_key(target, via), _Slot())
        kept = slot.kept
        if kept is None or kept.gone:
            kept = await self._shared(slot, target, via)
        kept.uses += 1
        return kept

    async def anew(self, target: Target, via: tuple[Target, ...] = ()) -> None:
        """Make one more connection, kept by nobody: whether the target still lets us in. Raises `TargetError`."""
        outer = await self.use(via[-1], via[:-1]) if via else None
        try:
            kept = await self._behind_gate(target, outer)
            try:
                await kept.ping()
            finally:
                await kept.aclose()
        finally:
            if outer:
                self.release(outer)

    def release(self, kept: Kept) -> None:
        kept.uses -= 1
        if kept.retired and not kept.uses:
            self._close_soon(kept)

    async def _shared(self, slot: _Slot, target: Target, via: tuple[Target, ...]) -> Kept:
        """Wait for the one attempt that all callers share; it ends early only when the last of them goes away."""
        task = slot.task
        if task is None:
            if slot.error is not None and asyncio.get_running_loop().time() < slot.retry_at:
                raise _again(slot.error)
            task = slot.task = asyncio.ensure_future(self._attempt(slot, target, via))
            task.add_done_callback(lambda done: _attempted(slot, done))
        slot.waiting += 1
        try:
            return await asyncio.shield(task)
        finally:
            slot.waiting -= 1
            if not slot.waiting and not task.done():
                task.cancel()
                if slot.task is task:
                    slot.task = None

    async def _attempt(self, slot: _Slot, target: Target, via: tuple[Target, ...]) -> Kept:
        try:
            outer = await self.use(via[-1], via[:-1]) if via else None
            made = None
            try:
                made = kept = await self._behind_gate(target, outer)
            finally:
                if outer and made is None:
                    self.release(outer)
        except TargetError as error:
            slot.failures += 1
            slot.error = copy(error)  # without its traceback, which holds the whole dead connection
            wait = min(BACKOFF * 2 ** (slot.failures - 1), LONGEST_BACKOFF)
            slot.retry_at = asyncio.get_running_loop().time() + wait
            raise
        slot.kept, slot.failures, slot.error = kept, 0, None
        kept.client.lost = lambda: self._lost(slot, kept)
        if kept.gone:
            self._lost(slot, kept)
            raise kept.lost()
        return kept

    def _lost(self, slot: _Slot, kept: Kept) -> None:
        if slot.kept is kept:
            slot.kept = None
        for close in kept.closers:
            close()
        kept.closers.clear()
        if kept.outer:
            outer, kept.outer = kept.outer, None
            self.release(outer)

    async def _behind_gate(self, target: Target, outer: Kept | None) -> Kept:
        connection = ssh(target)
        gate = self._gates.setdefault(outer or (connection.host, connection.port), asyncio.Semaphore(CONNECTS))
        async with gate:
            # Below the deadline of the target's calls, so that they can tell who did not answer.
            within = min(CONNECT_TIMEOUT, 0.75 * (target.constraints.timeout or CONNECT_TIMEOUT))
            made, client = await dial(connection, outer.connection if outer else None, self._known_hosts, within)
        return Kept(target, made, client, outer)

    async def retire(self, targets: Iterable[Target]) -> None:
        """Close the connections to these targets, and those that go through them, when their last call has ended."""
        ids = {target.id for target in targets}
        for key in [key for key in self._slots if ids & {place[0] for place in key}]:
            slot = self._slots.pop(key)
            if slot.kept:
                slot.kept.retired = True
                if not slot.kept.uses:
                    self._close_soon(slot.kept)

    def _close_soon(self, kept: Kept) -> None:
        task = asyncio.ensure_future(kept.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            if slot.task:
                slot.task.cancel()
        # Inner connections first: they run through the outer ones.
        kept = [slot.kept for slot in slots if slot.kept]
        for level in ([one for one in kept if one.outer], [one for one in kept if not one.outer]):
            await asyncio.gather(*(one.aclose() for one in level), return_exceptions=True)
        await asyncio.gather(*self._closing, return_exceptions=True)


def _key(target: Target, via: tuple[Target, ...]) -> Key:
    return tuple((place.id, place.connection) for place in (target, *via))


def _attempted(slot: _Slot, task: "asyncio.Task[Kept]") -> None:
    if slot.task is task:
        slot.task = None
    if not task.cancelled():
        task.exception()  # every waiter may be gone: it is in the slot anyway


def _again(error: TargetError) -> TargetError:
    """The same failure, for another call: an exception that is raised twice would carry both stories."""
    return type(error)(error.message, hint=error.hint, retryable=error.retryable, details=error.details)
