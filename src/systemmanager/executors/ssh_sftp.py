"""SFTP, version 3, as much as reading needs: many requests in one write, so that a batch costs one round trip.

asyncssh's own client opens, stats and closes around every read; a status asked that way costs three times the CPU.
"""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from systemmanager.errors import NotFound, PrivilegeRequired, TargetError, UnreadableOutput, Unsupported
from systemmanager.executors.ssh_connections import Session

OPEN, CLOSE, READ, LSTAT, FSTAT, OPENDIR, READDIR, REALPATH, READLINK, EXTENDED = 3, 4, 5, 7, 8, 11, 12, 16, 19, 200
_INIT, _VERSION, _STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED_REPLY = 1, 2, 101, 102, 103, 104, 105, 201
_OK, _END, _NO_SUCH_FILE, _DENIED, _UNSUPPORTED = 0, 1, 2, 3, 8

MOST = 32 * 1024
"""Bytes that one READ asks for: every server gives that many."""
_LONGEST = 1 << 20
START = 15.0
"""Seconds for the target to start its SFTP server: start-up files of the account's shell may run first."""
STUCK = 5.0
"""Seconds after which a request that nobody waits for any more says that the server hangs, on a dead mount perhaps."""

Request = tuple[int, bytes]
Reply = tuple[int, bytes]


class Failed(Exception):
    """A request that the server answered with a failure."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code

    def explained(self, path: str) -> TargetError:
        match self.code:
            case 2:
                return NotFound(f"there is no {path}")
            case 3:
                return PrivilegeRequired(
                    f"the target's user may not read {path}",
                    hint="Add it to the group that may (adm for /var/log), or set an ACL.",
                )
            case _:
                return Unsupported(f"{path} can't be read: {str(self)[:200].lower() or 'the target gave no reason'}")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What LSTAT and FSTAT answer; SFTP tells no inode."""

    size: int
    uid: int
    gid: int
    mode: int
    modified: int


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Sizes in bytes: all, free, and free for users."""

    total: int
    free: int
    available: int


class Sftp(Session):
    """One SFTP channel. Requests may be sent at any time; replies find theirs by number."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._since: dict[int, float] = {}
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Reply] = self._loop.create_future()

    @property
    def usable(self) -> bool:
        """Whether it is open, and answers."""
        now = self._loop.time()
        return not self.closed and all(now - since < STUCK for since in self._since.values())

    async def start(self) -> None:
        self._write(struct.pack(">IBI", 5, _INIT, 3))
        async with asyncio.timeout(START):
            kind, _ = await self._ready
        if kind != _VERSION:
            raise UnreadableOutput("the target's SFTP server does not speak SFTP")

    def _write(self, data: bytes) -> None:
        if self.channel is None or self.closed:
            raise Failed(7, "the connection was lost")
        try:
            self.channel.write(data)
        except OSError as error:
            raise Failed(7, "the connection was lost") from error

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for future in (*self._waiting.values(), self._ready):
            if not future.done():
                future.set_exception(Failed(7, "the connection was lost"))
                future.exception()  # nobody may be waiting any more
        self._waiting.clear()
        self._since.clear()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is not None:
            return
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= 5:
            size = int.from_bytes(self._buffer[start : start + 4], "big")
            if not 5 <= size <= _LONGEST and self.channel:
                self.channel.abort()
                return
            if len(self._buffer) - start < 4 + size:
                break
            self._packet(bytes(self._buffer[start + 4 : start + 4 + size]))
            start += 4 + size
        del self._buffer[:start]

    def _packet(self, packet: bytes) -> None:
        if packet[0] == _VERSION:
            if not self._ready.done():
                self._ready.set_result((packet[0], packet[5:]))
            return
        number = int.from_bytes(packet[1:5], "big")
        future = self._waiting.pop(number, None)
        self._since.pop(number, None)
        if future is None:
            return
        if future.cancelled():
            if packet[0] == _HANDLE and self.channel:
                self._send([(CLOSE, packet[5:])])  # opened for a caller that has gone
        elif not future.done():
            future.set_result((packet[0], packet[5:]))

    def _send(self, requests: Sequence[Request]) -> list[asyncio.Future[Reply]]:
        parts, futures = [], []
        for kind, payload in requests:
            self._number = (self._number + 1) & 0xFFFFFFFF
            parts.append(struct.pack(">IBI", 5 + len(payload), kind, self._number) + payload)
            future: asyncio.Future[Reply] = self._loop.create_future()
            self._waiting[self._number] = future
            self._since[self._number] = self._loop.time()
            futures.append(future)
        self._write(b"".join(parts))
        return futures

    async def ask(self, *requests: Request) -> list[Reply | Failed]:
        """Send requests together, and answer what came for each. Raises `Failed` when the channel is lost."""
        futures = self._send(requests)
        replies: list[Reply | Failed] = []
        try:
            for future in futures:
                kind, body = await future
                failure = _failure(body) if kind == _STATUS else None
                replies.append(failure or (kind, body))
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        return replies

    def forget(self, request: Request) -> None:
        """Send a request whose answer nobody needs; also from a call that is being cancelled."""
        if not self.closed:
            for future in self._send([request]):
                future.cancel()

    async def one(self, request: Request) -> bytes:
        """One request; its reply's body. Raises `Failed`."""
        (reply,) = await self.ask(request)
        if isinstance(reply, Failed):
            raise reply
        return reply[1]


def _failure(body: bytes) -> Failed | None:
    """What a STATUS says; None for success."""
    code = int.from_bytes(body[:4], "big")
    size = int.from_bytes(body[4:8], "big")
    return Failed(code, body[8 : 8 + size].decode("utf-8", "replace")) if code != _OK else None


# --- Requests --------------------------------------------------------------------------------------------------------


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def on_path(kind: int, path: bytes) -> Request:
    """LSTAT, OPENDIR, REALPATH or READLINK."""
    return kind, _string(path)


def on_handle(kind: int, handle: bytes) -> Request:
    """FSTAT, READDIR or CLOSE."""
    return kind, _string(handle)


def open_to_read(path: bytes) -> Request:
    return OPEN, _string(path) + struct.pack(">II", 1, 0)


def read_from(handle: bytes, offset: int, size: int = MOST) -> Request:
    return READ, _string(handle) + struct.pack(">QI", offset, size)


def file_system_of(path: bytes) -> Request:
    return EXTENDED, _string(b"statvfs@openssh.com") + _string(path)


# --- Replies ---------------------------------------------------------------------------------------------------------


def as_string(body: bytes) -> bytes:
    """A handle, or the data of a READ."""
    size = int.from_bytes(body[:4], "big")
    return body[4 : 4 + size]


def as_attributes(body: bytes) -> Attributes:
    return _attributes(body, 0)[0]


def _attributes(body: bytes, at: int) -> tuple[Attributes, int]:
    """Attributes at an offset, and the offset behind them. Raises `UnreadableOutput`."""
    try:
        (flags,) = struct.unpack_from(">I", body, at)
        at += 4
        size = uid = gid = mode = modified = 0
        if flags & 1:
            (size,), at = struct.unpack_from(">Q", body, at), at + 8
        if flags & 2:
            (uid, gid), at = struct.unpack_from(">II", body, at), at + 8
        if flags & 4:
            (mode,), at = struct.unpack_from(">I", body, at), at + 4
        if flags & 8:
            (_, modified), at = struct.unpack_from(">II", body, at), at + 8
        if flags & 0x80000000:
            (count,), at = struct.unpack_from(">I", body, at), at + 4
            for _ in range(2 * min(count, 64)):
                (length,) = struct.unpack_from(">I", body, at)
                at += 4 + length
    except struct.error as error:
        raise UnreadableOutput("the target's SFTP server sent a reply that is cut") from error
    return Attributes(size, uid, gid, mode, modified), at


def as_names(body: bytes) -> list[tuple[bytes, bytes, Attributes]]:
    """Name, the line that `ls -l` would print, and attributes of each entry."""
    names, at = [], 4
    for _ in range(int.from_bytes(body[:4], "big")):
        name = as_string(body[at:])
        at += 4 + len(name)
        line = as_string(body[at:])
        at += 4 + len(line)
        attributes, at = _attributes(body, at)
        names.append((name, line, attributes))
    return names


def as_file_system(body: bytes) -> FileSystem:
    try:
        size, fragment, blocks, free, available = struct.unpack_from(">QQQQQ", body)
    except struct.error as error:
        raise UnreadableOutput("the target's SFTP server sent a reply that is cut") from error
    unit = fragment or size
    return FileSystem(blocks * unit, free * unit, available * unit)


# --- A whole file ----------------------------------------------------------------------------------------------------


async def small_file(sftp: Sftp, path: bytes) -> str:
    """A file of the target's system, as far as it is short; nothing where it is missing."""
    try:
        handle = as_string(await sftp.one(open_to_read(path)))
        replies = await sftp.ask(*(read_from(handle, at * MOST) for at in range(4)))
        sftp.forget(on_handle(CLOSE, handle))
    except Failed:
        return ""
    return b"".join(as_string(reply[1]) for reply in replies if not isinstance(reply, Failed)).decode(errors="replace")
