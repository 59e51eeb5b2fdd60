"""The audit log's file: append, make durable, read back."""

import asyncio
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from systemmanager.audit.record import Record

BLOCK = 64 * 1024


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
        if self._descriptor is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.path, flags, 0o600)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(f"{self.path} is not a regular file")
            self._descriptor = descriptor
        return self._descriptor

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
            await asyncio.shield(self._syncing)

    async def _sync_once(self, covers: int) -> None:
        await asyncio.to_thread(os.fdatasync, self._open())
        self._durable = covers


def read_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The log's records, newest first, in constant memory. A line that is no JSON comes as `{"unreadable": ...}`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        position = file.seek(0, os.SEEK_END)
        tail = b""
        while position > 0:
            step = min(BLOCK, position)
            position -= step
            file.seek(position)
            head, *lines = (file.read(step) + tail).split(b"\n")
            for line in reversed(lines):
                if line:
                    yield _record(line)
            tail = head
        if tail:
            yield _record(tail)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
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
    """Records that match every given filter, newest first. `since` is an ISO 8601 time in UTC, as the log writes it."""
    wanted = {"call_id": call_id, "tool": tool, "target": target, "subject": subject, "phase": phase}
    filters = {name: value for name, value in wanted.items() if value is not None}
    for record in read_backwards(path):
        if since is not None and record.get("time", "~") < since:
            return
        if all(record.get(name) == value for name, value in filters.items()):
            yield record
