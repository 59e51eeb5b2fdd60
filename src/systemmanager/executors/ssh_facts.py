"""Facts of an SSH target. A status forks nothing there: SFTP reads of /proc files that stay open, in one round trip."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from systemmanager.errors import ConnectionLost, TargetError, UnreadableOutput
from systemmanager.executors import procfs, procnet
from systemmanager.executors.bounded import Collected, tail
from systemmanager.executors.ssh_connections import Kept
from systemmanager.executors.ssh_files import sftp_of
from systemmanager.executors.ssh_sftp import (
    CLOSE,
    Failed,
    FileSystem,
    Reply,
    Request,
    Sftp,
    as_file_system,
    as_string,
    file_system_of,
    on_handle,
    open_to_read,
    read_from,
)
from systemmanager.executors.ssh_shell import SshShell
from systemmanager.ports import Connection, Cpu, Disk, Interface, IoCounters, Process, SystemStatus
from systemmanager.request import Permit

INTERVAL, OLDEST = 0.1, 60.0
"""Seconds between which a kept CPU sample is good to compare with; under 0.1 the kernel's ticks show, says psutil."""
MOST_DISKS = 64
PROBE_BYTES = 16 * 1024 * 1024

_READ = ("/proc/stat", "/proc/meminfo", "/proc/loadavg", "/proc/uptime")
_MOUNTS = "/proc/self/mounts"
_STATIC = ("/proc/sys/kernel/hostname", "/proc/sys/kernel/osrelease", "/etc/os-release", "/usr/lib/os-release")

# Fixed programs: nothing of a call stands in them, but a random word that parts their sections.
_SECTIONS = 'm=$1; s() { printf "\\n%s %s\\n" "$m" "$1"; }; cd /proc || exit; exec 2>/dev/null; '
_COMMANDS = (
    's commands; if grep -qz "" self/cmdline; then grep -azsH "" [0-9]*/cmdline; else for p in [0-9]*; do '
    'printf "%s/cmdline:" $p; tr "\\000" " " <$p/cmdline; printf "\\000"; done; fi; '
)
PROCESSES = (
    _SECTIONS + "s own; echo $$; s page; getconf PAGESIZE; s passwd; cat /etc/passwd; s meminfo; cat meminfo; "
    "s started; cat uptime; s before; cat [0-9]*/stat; sleep 0.3 || sleep 1; s ended; cat uptime; "
    's after; cat [0-9]*/stat; s uids; grep -sH "^Uid:" [0-9]*/status; ' + _COMMANDS + "s end; exit 0"
)
INTERFACES = (
    _SECTIONS + "s addresses; ip -o addr; s route; cat net/route; s fib_trie; cat net/fib_trie; s if_inet6; "
    'cat net/if_inet6; s links; cd /sys/class/net && grep -sH "" */address */mtu */flags */speed */operstate; '
    "s end; exit 0"
)
CONNECTIONS = (
    _SECTIONS + "for f in tcp tcp6 udp udp6; do s $f; cat net/$f; done; "
    "s sockets; if find --version >/dev/null; "
    'then find [0-9]*/fd -maxdepth 1 -lname "socket:*" -printf "%h %l\\n"; '
    'else ls -l [0-9]*/fd | sed -n -e "/^[0-9]*.fd:$/{s/:$//;h;}" '
    '-e "/ -> socket:/{s/.* -> //;G;s/\\(.*\\)\\n\\(.*\\)/\\2 \\1/p;}"; fi; '
    's names; grep -sH "" [0-9]*/comm; ' + _COMMANDS + "s end; exit 0"
)


@dataclass(eq=False)
class _Memory:
    """What one SFTP channel keeps between two statuses: open files, what never changes, the last sample."""

    sftp: Sftp
    handles: dict[str, bytes] = field(default_factory=dict)
    hostname: str = ""
    system: str = ""
    sample: tuple[float, procfs.CpuTimes] | None = None
    percent: float | None = None
    mounts: list[bytes] = field(default_factory=list)
    places: list[procfs.Mount] = field(default_factory=list)
    ready: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SshFacts:
    def __init__(self, permit: Permit, kept: Kept) -> None:
        self._permit = permit
        self._kept = kept

    async def status(self) -> SystemStatus:
        try:
            return await self._status()
        except Failed as error:
            raise self._explained(error) from error

    async def counters(self) -> Sequence[IoCounters]:
        try:
            memory = await self._memory()
            return procnet.counters(await _whole(memory, "/proc/net/dev"))
        except Failed as error:
            raise self._explained(error) from error

    async def processes(self) -> Sequence[Process]:
        sections = await self._probe(PROCESSES)
        return await asyncio.to_thread(procfs.processes, sections)

    async def interfaces(self) -> Sequence[Interface]:
        return procnet.interfaces(await self._probe(INTERFACES))

    async def connections(self) -> Sequence[Connection]:
        sections = await self._probe(CONNECTIONS)
        return await asyncio.to_thread(procnet.connections, sections)

    def _explained(self, error: Failed) -> TargetError:
        self._kept.memory.pop("facts", None)
        if self._kept.gone or error.code == 7:
            return ConnectionLost(f"the connection to {self._permit.target.id!r} was lost")
        return UnreadableOutput(f"/proc of {self._permit.target.id!r} can't be read: {str(error)[:200]}")

    async def _probe(self, script: str) -> dict[str, str]:
        """Run one fixed program and answer what it printed, by section."""
        mark, collected = secrets.token_hex(8), Collected(PROBE_BYTES)
        shell = SshShell(self._permit, self._kept)
        await shell.execute(("sh", "-c", script, "sh", mark), "", collected)
        parts = collected.text(0).split(f"\n{mark} ")[1:]
        sections = {name: text for name, _, text in (part.partition("\n") for part in parts)}
        if "end" not in sections:
            raise UnreadableOutput(
                f"/proc of {self._permit.target.id!r} did not come whole; is it a Linux machine?",
                details={"stderr": tail(collected.text(1))},
            )
        return sections

    # --- Status -------------------------------------------------------------------------------------------------------

    async def _memory(self) -> _Memory:
        sftp = await sftp_of(self._kept)
        memory: _Memory | None = self._kept.memory.get("facts")
        if memory is None or memory.sftp is not sftp:
            memory = self._kept.memory["facts"] = _Memory(sftp)
        if not memory.ready:
            async with memory.lock:
                if not memory.ready:
                    await _open_all(memory)
        return memory

    async def _status(self) -> SystemStatus:
        memory = await self._memory()
        places = memory.places
        offsets = [sum(map(len, memory.mounts[:index])) for index in range(len(memory.mounts) + 1)]
        requests: list[Request] = [read_from(memory.handles[path], 0) for path in _READ]
        requests += [read_from(memory.handles[_MOUNTS], offset) for offset in offsets]
        requests += [file_system_of(_encoded(place.place)) for place in places]
        replies = await memory.sftp.ask(*requests)
        stat, meminfo, loadavg, uptime = (_text(reply) for reply in replies[: len(_READ)])
        now = asyncio.get_running_loop().time()
        chunks = [_data(reply) for reply in replies[len(_READ) : len(_READ) + len(offsets)]]
        sizes = replies[len(_READ) + len(offsets) :]
        if chunks != [*memory.mounts, b""] or not memory.mounts:
            places, sizes = await _mounted(memory)
        times = procfs.cpu_times(stat)
        return SystemStatus(
            hostname=memory.hostname,
            system=memory.system,
            uptime=int(procfs.uptime(uptime)),
            cpu=Cpu(percent=await _busy(memory, now, times), cores=times.cores, load=procfs.load(loadavg)),
            memory=procfs.memory(meminfo),
            disks=[disk for place, size in zip(places, sizes, strict=True) if (disk := _disk(place, size))],
        )


def _encoded(path: str) -> bytes:
    """A path of /proc/self/mounts as bytes: its escapes stood for single bytes."""
    return path.encode("utf-8", "surrogateescape")


def _data(reply: Reply | Failed) -> bytes:
    """What a READ answered; nothing at the end of a file."""
    if isinstance(reply, Failed):
        if reply.code == 1:
            return b""
        raise reply
    return as_string(reply[1])


def _text(reply: Reply | Failed) -> str:
    return _data(reply).decode("utf-8", "replace")


async def _open_all(memory: _Memory) -> None:
    """Open what every status reads, and read once what stays as it is."""
    paths = (*_READ, _MOUNTS, "/proc/net/dev")
    opened = await memory.sftp.ask(*(open_to_read(path.encode()) for path in (*paths, *_STATIC)))
    handles = [None if isinstance(reply, Failed) else as_string(reply[1]) for reply in opened]
    for path, handle, reply in zip(paths, handles, opened, strict=False):
        if handle is not None:
            memory.handles[path] = handle
        elif isinstance(reply, Failed) and path != "/proc/net/dev":
            raise Failed(reply.code, f"{path}: {reply}")
    static = [handle for handle in handles[len(paths) :] if handle is not None]
    stat, *replies = await memory.sftp.ask(
        read_from(memory.handles[_READ[0]], 0),
        *(read_from(handle, 0) for handle in static),
        *(on_handle(CLOSE, handle) for handle in static),
    )
    memory.sample = (asyncio.get_running_loop().time(), procfs.cpu_times(_text(stat)))
    texts = iter(map(_text, replies[: len(static)]))
    hostname, kernel, release, fallback = (
        next(texts).strip() if handle is not None else "" for handle in handles[len(paths) :]
    )
    memory.hostname = hostname
    memory.system = f"{procfs.distribution(release or fallback)}, Linux {kernel}"
    memory.ready = True


async def _whole(memory: _Memory, path: str) -> str:
    """A file of /proc to its end: such files come in pieces of a page."""
    handle = memory.handles.get(path)
    if handle is None:
        raise Failed(2, f"{path} is not there")
    return b"".join(await _chunks(memory.sftp, handle)).decode("utf-8", "replace")


async def _chunks(sftp: Sftp, handle: bytes) -> list[bytes]:
    chunks: list[bytes] = []
    size = 0
    while size < PROBE_BYTES:
        (reply,) = await sftp.ask(read_from(handle, size))
        chunk = _data(reply)
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return chunks


async def _mounted(memory: _Memory) -> tuple[list[procfs.Mount], list[Reply | Failed]]:
    """Read the mounts anew, and the size of each."""
    memory.mounts = await _chunks(memory.sftp, memory.handles[_MOUNTS])
    text = b"".join(memory.mounts).decode("utf-8", "surrogateescape")
    memory.places = procfs.mounts(text)[:MOST_DISKS]
    sizes = await memory.sftp.ask(*(file_system_of(_encoded(place.place)) for place in memory.places))
    return memory.places, sizes


async def _busy(memory: _Memory, now: float, times: procfs.CpuTimes) -> float:
    """Percent busy since the kept sample; when it is too young, since then and a moment later."""
    assert memory.sample is not None
    since, before = memory.sample
    if now - since > OLDEST:
        since, before, memory.percent = now, times, None
    if (early := INTERVAL - (now - since)) > 0:
        if memory.percent is not None:
            return memory.percent
        await asyncio.sleep(early)
        (reply,) = await memory.sftp.ask(read_from(memory.handles[_READ[0]], 0))
        now, times = asyncio.get_running_loop().time(), procfs.cpu_times(_text(reply))
    memory.sample, memory.percent = (now, times), procfs.busy_percent(before, times)
    return memory.percent


def _disk(place: procfs.Mount, reply: Reply | Failed) -> Disk | None:
    if isinstance(reply, Failed):
        return None
    size: FileSystem = as_file_system(reply[1])
    used = size.total - size.free
    if not size.total:
        return None
    usable = used + size.available
    return Disk(
        mount=_shown(place.place),
        device=_shown(place.device),
        filesystem=place.kind,
        total=size.total,
        free=size.available,
        percent=round(100 * used / usable, 1) if usable else 0.0,
    )


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
