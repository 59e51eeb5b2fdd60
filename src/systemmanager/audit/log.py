"""The audit log's file: append, make durable, read back."""

import asyncio
import json
import os
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from systemmanager.audit.record import Record
from systemmanager.errors import InvalidArguments

BLOCK = 64 * 1024
MOST_OF_A_LINE = 1024 * 1024
OLDER_IN_A_ROW = 1000
"""So many records before `since` end a search: a clock that was set back leaves a few of them among later ones."""


class AuditLog:
    """Appends Records to one file that only its owner may read.

    A write is one `write(2)` on an `O_APPEND` descriptor. `durable` writes are on the disk when `append` returns; those
    that come together share one `fdatasync`. All errors are `OSError`: the gateway decides what they mean for a call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        self._descriptor: int | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._written = 0
        self._durable = 0

    async def append(self, records: Iterable[Record], *, durable: bool) -> None:
        """Write the records, in order. Raises `OSError`; after that nothing of them may be relied upon."""
        try:
            self._write(b"".join(record.line() for record in records))
            if durable:
                await self._sync()
        except OSError as error:
            self.error = f"{error.strerror or error}"
            self.close()
            raise
        self.error = None

    def note(self, record: Record) -> None:
        """Write one record, not durably, without waiting for anything."""
        try:
            self._write(record.line())
        except OSError as error:
            self.error = f"{error.strerror or error}"
            self.close()
            raise

    def append_now(self, record: Record) -> None:
        """Write one record without an event loop, durably: for the command line."""
        try:
            self._write(record.line())
            os.fdatasync(self._open())
        except OSError as error:
            self.error = f"{error.strerror or error}"
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is not None and not self._still_there(self._descriptor):
            self.close()
        if self._descriptor is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.path, flags, 0o600)
            try:
                self._descriptor = _whole_lines(descriptor, self.path)
            except OSError:
                os.close(descriptor)
                raise
        return self._descriptor

    def _still_there(self, descriptor: int) -> bool:
        """Whether the file is still the one at the path: a rotation or a removal must not swallow records."""
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _write(self, data: bytes) -> None:
        descriptor = self._open()
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, data[written:])

    async def _sync(self) -> None:
        self._written += 1
        mine = self._written
        while self._durable < mine:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.ensure_future(self._sync_once(self._written))
                # When all who wait are cancelled, nobody else takes its exception.
                self._syncing.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(self._syncing)

    async def _sync_once(self, covers: int) -> None:
        # Its own descriptor: a failed write may close the log's while the thread is on its way.
        descriptor = os.dup(self._open())
        try:
            await asyncio.to_thread(os.fdatasync, descriptor)
        finally:
            os.close(descriptor)
        self._durable = max(self._durable, covers)


def _whole_lines(descriptor: int, path: Path) -> int:
    """The descriptor, when it is a regular file's. A line that a full disk or a crash cut off is ended first."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a regular file")
    if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
        os.write(descriptor, b"\n")
    return descriptor


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The log's lines, newest first, in constant memory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        position = file.seek(0, os.SEEK_END)
        tail = b""
        while position > 0:
            step = min(BLOCK, position)
            position -= step
            file.seek(position)
            head, *lines = (file.read(step) + tail).split(b"\n")
            yield from filter(None, reversed(lines))
            tail = head[:MOST_OF_A_LINE]
        if tail:
            yield tail


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {"unreadable": line[:200].decode("utf-8", "replace")}
    return record if isinstance(record, dict) else {"unreadable": str(record)[:200]}


def query(
    path: Path,
    *,
    call_id: str | None = None,
    tool: str | None = None,
    target: str | None = None,
    subject: str | None = None,
    phase: str | None = None,
    since: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Records that match every given filter, newest first; a line that is no record comes as `{"unreadable": ...}`.

    `since` is an ISO 8601 time, UTC unless it says otherwise.
    Raises `InvalidArguments` for a time that can't be read, `OSError` for a log that can't be.
    """
    wanted = {"call_id": call_id, "tool": tool, "target": target, "subject": subject, "phase": phase}
    filters = {name: value for name, value in wanted.items() if value is not None}
    # A line that does not hold the text can't hold the value: most lines need not be parsed.
    marks = [json.dumps(value).encode() for value in filters.values()]
    earliest, older = _instant(since), 0
    for line in _lines_backwards(path):
        if not all(mark in line for mark in marks):
            continue
        record = _record(line)
        if earliest is not None and str(record.get("time", "~")) < earliest:
            older += 1
            if older >= OLDER_IN_A_ROW:
                return
        elif all(record.get(name) == value for name, value in filters.items()):
            older = 0
            yield record


def _instant(since: str | None) -> str | None:
    """A time as the log writes it."""
    if since is None:
        return None
    try:
        given = datetime.fromisoformat(since)
        moment = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        hint = "Write it like 2026-01-31 or 2026-01-31T08:00."
        raise InvalidArguments(f"since: {since[:40]!r} is no time", hint=hint) from error
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"
