"""Programs on an SSH target: argv arrives as it was given, and the program never outlives its call.

An SSH server hands one string to the account's login shell, and shells read quotes differently: `!` and newlines in
csh, backslashes in fish. So the string is fixed but for a random word, made of characters that sh, bash, dash, zsh,
fish and csh read alike; it starts /bin/sh, which reads the arguments from standard input, line by line, and never
parses them. Only arguments of harmless characters stand in the string itself. What start-up files print or swallow is
told apart by the random word: output before it is not the program's, and arguments that are not complete start nothing.

SSH servers do not end a program when its channel closes. So a watcher in the program's process group (sshd makes one
per session) holds the channel's standard input: at its end (we closed it, or the connection died) the whole group gets
SIGTERM, and a second later SIGKILL. The program itself replaces the shell: its exit status and signal arrive unchanged.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import anyio
import asyncssh

from systemmanager.errors import CommandFailed, TargetError, Unsupported
from systemmanager.executors.bounded import Collected, finished, tail, with_privilege
from systemmanager.executors.lasting import Lasting
from systemmanager.executors.ssh_connections import Kept, Session, ssh
from systemmanager.ports import Output
from systemmanager.request import Permit

ANEW_WITHIN = 10.0
GRACE = 0.6
"""Seconds that an ended call waits for the target to say that the program is gone."""

# No quote, backslash, `!` or newline: login shells disagree about those. Below 1,000 characters: csh's longest word.
_BEGIN = (
    "m=$1; shift; PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/run/current-system/sw/bin LC_ALL=C.UTF-8; "
    "export PATH LC_ALL; "
)
_READ = (
    # `=text` ends an argument, `+text` is a line of it with more to come, `.` ends the list.
    "c=$1 n=${IFS#??} a=; shift; while IFS= read -r x; do case $x in "
    '=*) set -- "$@" "$a${x#=}"; a=;; +*) a=$a${x#+}$n;; .) break;; *) exit 125;; esac; done; '
    '[ $# = "$c" ] || exit 125; d=$1; shift; '
)
_WATCH = (
    # Without a process group of our own (a server that is not OpenSSH), setsid makes one.
    'if kill -s 0 -- -$$; then :; elif command -v setsid; then set -- setsid "$@"; fi >/dev/null 2>&1; '
    'k=; case $1 in sudo) k="sudo -n";; esac; '
    'exec 3<&0 </dev/null; (trap "" HUP INT TERM; while read -r x; do :; done <&3; '
    "kill -s TERM -- -$$ || kill -s TERM $$; "
    # Gone already, as after every command that ended by itself: then there is nothing to wait for.
    "if [ -d /proc/$$ ]; then ${k:+$k kill -s TERM -- -$$}; sleep 1; ${k:+$k kill -s KILL -- -$$}; fi; "
    "kill -s KILL -- -$$ || kill -s KILL $$) >/dev/null 2>&1 & "
    'exec 3<&-; echo "$m"; echo "$m" >&2; '
)
PROGRAM = _BEGIN + _READ + _WATCH + '[ -n "$d" ] || exec "$@"; printf %s "$d" | "$@"'
PLAIN_PROGRAM = _BEGIN + _WATCH + 'exec "$@"'
"""For arguments that no login shell reads in any other way: they stand in the line, which saves a round trip."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:,+-][A-Za-z0-9_./:,+=-]*", re.ASCII)
_LONGEST_PLAIN = 2000


def line_and_input(mark: str, argv: Sequence[str], stdin: str) -> tuple[str, bytes]:
    """The command line for the login shell, and what its program then reads."""
    words = " ".join(argv)
    if not stdin and len(words) <= _LONGEST_PLAIN and all(map(_PLAIN.fullmatch, argv)):
        return f"exec /bin/sh -c '{PLAIN_PROGRAM}' sh {mark} {words}", b""
    return f"exec /bin/sh -c '{PROGRAM}' sh {mark} {len(argv) + 1}", framed(argv, stdin)


def framed(argv: Sequence[str], stdin: str) -> bytes:
    """What the program reads: its standard input first, then the arguments."""
    lines = []
    for value in (stdin, *argv):
        *begun, last = value.split("\n")
        lines += [f"+{line}" for line in begun] + [f"={last}"]
    return "\n".join([*lines, ".\n"]).encode("utf-8", "surrogateescape")


class _Command(Session):
    """One running program: collects what it says, knows when and how it ended."""

    def __init__(self, mark: str, collected: Collected) -> None:
        super().__init__()
        self.collected = collected
        self.done = asyncio.Event()
        self.status: int | None = None
        self.signal: str | None = None
        self.began = [False, False]
        self.before = [b"", b""]
        self.complete = False
        self._eof = False
        self._mark = mark.encode() + b"\n"

    def data_received(self, data: bytes, datatype: int | None) -> None:
        index = 0 if datatype is None else 1
        if not self.began[index]:
            before, found, data = (self.before[index] + data).partition(self._mark)
            self.before[index] = before[-4096:]
            if not found:
                return
            self.began[index] = True
        self.collected.add(data, index)
        if self.collected.full.is_set():
            self.done.set()

    def exit_status_received(self, status: int) -> None:
        self.status = status
        self._perhaps_complete()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.signal = signal
        self._perhaps_complete()

    def eof_received(self) -> bool:
        self._eof = True
        self._perhaps_complete()
        return True

    def _perhaps_complete(self) -> None:
        """All is said once output and status are here; waiting for the server's close would cost a delayed packet."""
        if self._eof and (self.status is not None or self.signal) and self.channel:
            self.complete = True
            self.done.set()
            self.channel.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.done.set()

    @property
    def prelude(self) -> str:
        """What was said before the program began: by start-up files, or by a shell that could not start it."""
        return b"\n".join(reversed(self.before)).decode("utf-8", "replace")


class SshShell(Lasting):
    """Programs on one target, each on a channel of its own of the kept connection. `again` gives it a new one."""

    def __init__(
        self,
        permit: Permit,
        kept: Kept,
        again: Callable[[], Awaitable[Kept]] | None = None,
        try_new: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._permit = permit
        self._kept = kept
        self._again, self._try_new = again, try_new

    async def reconnect(self) -> None:
        if self._kept.gone and self._again:
            self._kept = await self._again()

    async def anew(self) -> bool | None:
        try:
            assert self._try_new is not None
            async with asyncio.timeout(ANEW_WITHIN):
                await self._try_new()
            await self.reconnect()
        except (TargetError, TimeoutError):
            return False
        return True

    def is_root(self) -> bool:
        return ssh(self._permit.target).username == "root"

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
        limit = self._permit.target.constraints.max_output_bytes
        collected = Collected(limit, latest=latest)
        started = command
        if env and command == argv:
            started = ("env", *(f"{name}={value}" for name, value in env.items()), *argv)
        ended = await self.execute(started, stdin, collected)
        output = Output(command, ended.status or 0, collected.text(0), collected.text(1), collected.cut)
        return finished(output, check=check, partial=partial, latest=latest, limit=limit)

    async def execute(self, argv: Sequence[str], stdin: str, collected: Collected) -> _Command:
        """Run one program to its end, or to the bound of `collected`. Whatever happens, it does not outlive this."""
        if any("\0" in value for value in (*argv, stdin)):
            raise CommandFailed(f"{argv[0]!r} can't be given a NUL character")
        mark = secrets.token_hex(8)
        line, feed = line_and_input(mark, argv, stdin)
        try:
            session = await self._kept.session(_Command(mark, collected), command=line)
        except asyncssh.ChannelOpenError as error:
            raise Unsupported(
                f"{self._permit.target.id!r} does not let the gateway run programs: {error.reason}",
                hint="Check ForceCommand, MaxSessions and the account's login shell.",
            ) from error
        try:
            assert session.channel is not None
            if feed and not session.closed:
                with suppress(BrokenPipeError):
                    session.channel.write(feed)
            await session.done.wait()
        except asyncio.CancelledError:
            self._kept.suspect()
            raise
        finally:
            if not (session.closed or session.complete):
                with anyio.CancelScope(shield=True):
                    await _end(session)
        self._judge(argv[0], session)
        return session

    def _judge(self, program: str, session: _Command) -> None:
        if session.collected.full.is_set():
            return
        if session.began[0] and session.signal:
            raise CommandFailed(f"{program} was ended by SIG{session.signal.removeprefix('SIG')}")
        if session.status is None:
            raise self._kept.lost()
        if not session.began[0]:
            raise CommandFailed(
                f"the login shell of {ssh(self._permit.target).username!r} on {self._permit.target.id!r} "
                f"did not start {program}",
                hint="The account needs a login shell that can run /bin/sh, and start-up files that read no input.",
                details={"stderr": tail(session.prelude)},
            )


async def _end(session: _Command) -> None:
    """Have the watcher end the program, and go on reading (to nowhere) until it is gone; bounded."""
    assert session.channel is not None
    session.done.clear()
    with suppress(TimeoutError, OSError):
        session.channel.write_eof()
        async with asyncio.timeout(GRACE):
            while not (session.closed or session.complete):
                session.done.clear()
                await session.done.wait()
    if not session.closed:
        session.channel.close()
