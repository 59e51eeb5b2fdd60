"""Commands that go on without us: started once whatever happens, followed from wherever we are, taken up again.

One implementation over `run`, for every kind of Shell; `spool` says how the target keeps what we may miss.
"""

import asyncio
import codecs
import re
from abc import abstractmethod
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio

from systemmanager.errors import CommandFailed, CommandMissing, ConnectionLost, EndedUnknown, TargetError, Unreachable
from systemmanager.executors import spool
from systemmanager.executors.bounded import Collected, finished, tail, with_privilege
from systemmanager.following import Following
from systemmanager.ports import Output, Shell
from systemmanager.request import Permit

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two looks at a running command."""

RECONNECT, LONGEST_RECONNECT = 0.25, 5.0
LOOK_WITHIN = 20.0
"""Seconds for one look; a connection that takes longer is taken for lost."""

END_WITHIN = 4.0
STARTS = 5
"""How often a command is started that does not begin."""

_STEP = re.compile(r"[a-z-]{1,20}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_NO_STATUS = {
    "gone": "ended without leaving its exit status",
    "none": "left nothing behind",
    "cancelled": "was ended before its time",
    "void": "was called off before it began",
}


@dataclass(slots=True)
class _Heard:
    """How much of each stream is known, and who else wants to know it."""

    collected: Collected
    tell: Callable[[str], None]
    offsets: list[int] = field(default_factory=lambda: [0, 0])
    decoders: list[codecs.IncrementalDecoder] = field(
        default_factory=lambda: [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
    )

    def take(self, index: int, chunk: bytes, final: bool = False) -> None:
        self.offsets[index] += len(chunk)
        self.collected.add(chunk, index)
        if text := self.decoders[index].decode(chunk, final):
            self.tell(text)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One look: the state, the size of each stream as far as it is kept, and whether its middle is missing."""

    state: str
    sizes: tuple[int, int]
    cut: bool


class Lasting(Shell):
    """A Shell's `detached`, `remember` and `forget`, over its `run`."""

    following: Following | None = None
    _permit: Permit
    _started = False

    @abstractmethod
    def is_root(self) -> bool: ...  # whether programs run as root without sudo

    async def reconnect(self) -> None:
        """Be able to run commands again after the connection was lost. Raises `TargetError`."""

    async def anew(self) -> bool | None:
        return None

    async def remember(self, name: str, read: Callable[[], Awaitable[Any]]) -> Any:
        """A value as an earlier run of the same job has read it, else as it is read now."""
        if self.following is None:
            return await read()
        if name not in self.following.kept:
            self.following.keep(name, await read())
        return self.following.kept[name]

    async def detached(
        self,
        step: str,
        *argv: str,
        privileged: bool = False,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Output:
        following = self.following
        if following is None:
            return await self.run(*argv, privileged=privileged, check=check, latest=True, env=env)
        assert _STEP.fullmatch(step) and _ID.fullmatch(following.id), (step, following.id)
        name = f"{following.id}.{step}"
        command = with_privilege(argv, self._permit, root=self.is_root(), privileged=privileged, env=env)
        behind_sudo = command != argv
        self._started = True
        limit = self._permit.target.constraints.max_output_bytes
        heard = _Heard(Collected(limit, latest=True), following.heard)
        try:
            await self._launch(name, spool.runner(command), None if behind_sudo else env)
            seen = await self._follow(name, heard)
        except asyncio.CancelledError:
            if not following.leaving():
                await self._end(name, "sudo" if behind_sudo else "")
            raise
        status = _judged(argv[0], seen.state, heard.collected)
        cut = heard.collected.cut or seen.cut
        output = Output(command, status, heard.collected.text(0), heard.collected.text(1), cut)
        return finished(output, check=check, partial=False, latest=True, limit=limit)

    async def forget(self) -> None:
        """Remove what detached commands of this job left on the target; a sweep does it later where this can't."""
        if self.following is not None and self._started:
            with suppress(TargetError):
                await self.run("/bin/sh", "-c", spool.FORGET, "sh", self.following.id)

    async def _launch(self, name: str, program: str, env: Mapping[str, str] | None) -> None:
        """Start it, unless it has begun already. May be repeated at any time."""
        said = ""
        for attempt in range(STARTS):
            await asyncio.sleep(attempt * RECONNECT)
            output = await self._whatever_it_takes("LAUNCH", name, stdin=program, env=env)
            said = output.stdout.strip()
            if said == "begun":
                return
            if said == "no setsid":
                raise CommandMissing("setsid is not installed on the target", hint="It is part of util-linux.")
            if said.startswith("no "):
                raise CommandFailed(f"the target does not take up a command that lasts: {said[3:]}")
        raise CommandFailed("the target did not start the command in time", details={"said": tail(said)})

    async def _follow(self, name: str, heard: _Heard) -> _Seen:
        """Hear all that it says, until it has ended."""
        pause = FIRST_PAUSE
        while True:
            seen = await self._look(name, heard)
            if tuple(heard.offsets) == seen.sizes:
                if seen.state not in ("running", "new"):
                    heard.take(0, b"", final=True)
                    heard.take(1, b"", final=True)
                    return seen
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 1.5)

    async def _look(self, name: str, heard: _Heard) -> _Seen:
        limit = self._permit.target.constraints.max_output_bytes
        chunk = min(256 * 1024, (limit - 200) * 3 // 8)  # of each of two streams, in base64
        output = await self._whatever_it_takes("LOOK", name, *map(str, heard.offsets), str(chunk))
        head, *pieces = output.stdout.split("\n")
        *numbers, state = head.split(" ", 4)
        if len(numbers) != 4:  # `none 0 0 0 0`
            return _Seen("none", (heard.offsets[0], heard.offsets[1]), False)
        out, out_end, err, err_end = map(int, numbers)
        for index in (0, 1):
            heard.take(index, b64decode(pieces[index]))
        return _Seen(state.strip(), (out + out_end, err + err_end), max(out, err) >= spool.KEPT_BYTES)

    async def _whatever_it_takes(self, script: str, *values: str, **how: Any) -> Output:
        """Run one of the spool's scripts; as often as the connection is lost it is made again, until the deadline."""
        wait, lost = RECONNECT, False
        while True:
            try:
                if lost:
                    await self.reconnect()
                async with asyncio.timeout(LOOK_WITHIN):
                    return await self.run("/bin/sh", "-c", getattr(spool, script), "sh", *values, **how)
            except (ConnectionLost, Unreachable, TimeoutError):
                lost = True
            await asyncio.sleep(wait)
            wait = min(LONGEST_RECONNECT, wait * 2)

    async def _end(self, name: str, behind: str) -> None:
        """End it and all that it started; bounded, and never an error: the call has one already."""
        with anyio.CancelScope(shield=True), suppress(TargetError, TimeoutError):
            async with asyncio.timeout(END_WITHIN):
                await self.run("/bin/sh", "-c", spool.END, "sh", name, behind, check=False)


def _judged(program: str, state: str, collected: Collected) -> int:
    """The exit status that was left. Raises `CommandFailed` for a signal, `EndedUnknown` where there is none."""
    code, _, signal = state.partition(" ")
    if code.isdecimal():
        if signal:
            raise CommandFailed(f"{program} was ended by SIG{signal.removeprefix('SIG')}")
        return int(code)
    if state == "unwritable":
        raise CommandFailed(f"{program} was not started: the target can't write what it says")
    raise EndedUnknown(
        f"{program} {_NO_STATUS.get(state, _NO_STATUS['gone'])}",
        details={"stderr": tail(collected.text(1) or collected.text(0))},
    )
