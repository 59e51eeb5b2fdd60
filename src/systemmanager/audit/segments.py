"""The files of an audit log: `audit.jsonl`, which grows, and the closed ones before it, `audit-000000000001.jsonl` ...
named for the number of their first record."""

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from systemmanager.audit.record import GENESIS, parsed, sealed

BLOCK = 64 * 1024
LOCK_WITHIN = 1.0
MOST_OF_A_LINE = 1024 * 1024
MOST_TORN = 64 * MOST_OF_A_LINE

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
APPEND = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def name_of(path: Path, first: int) -> Path:
    """Where a segment goes when it is closed."""
    return path.with_name(f"{path.stem}-{first:012d}{path.suffix}")


def closed(path: Path) -> list[Path]:
    """The closed segments of a log, oldest first. Raises `OSError`."""
    form = re.compile(rf"{re.escape(path.stem)}-[0-9]{{12,}}{re.escape(path.suffix)}")
    try:
        found = [one for one in path.parent.iterdir() if form.fullmatch(one.name)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda one: (len(one.name), one.name))


def open_to_read(path: Path) -> int:
    """A descriptor of a regular file. Raises `OSError`."""
    return regular(os.open(path, READ), path)


def regular(descriptor: int, path: Path) -> int:
    """The descriptor when it is a regular file's; else it is closed and `OSError` is raised."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


@contextmanager
def locked_to_read(descriptor: int) -> Iterator[None]:
    """While no writer is in the middle of a record; after `LOCK_WITHIN` it is not waited for."""
    ends = time.monotonic() + LOCK_WITHIN
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > ends:
                break
            time.sleep(0.001)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes at the end of a segment that are no record: a crash or a full disk cut them off."""

    length: int
    digest: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Tail:
    """The last record of a segment, and what stands torn behind it. `open_line`: just its line feed is missing."""

    n: int = 0
    head: str = GENESIS
    torn: Torn | None = None
    open_line: bool = False


def tail_of(descriptor: int, size: int) -> Tail:
    """What a segment of `size` bytes ends with. Raises `OSError`.

    A whole line that holds an object but no seal is no record of ours: it stays for `audit verify` to name.
    """
    for window in (16 * 1024, MOST_OF_A_LINE, MOST_TORN):
        begin = max(0, size - window)
        data = _read(descriptor, begin, size)
        found = _last(data)
        if found.n or begin == 0:
            return found
    raise OSError(f"there is no record in its last {MOST_TORN} bytes: move the file away")


def _read(descriptor: int, begin: int, end: int) -> bytes:
    parts = []
    while begin < end and (part := os.pread(descriptor, end - begin, begin)):
        parts.append(part)
        begin += len(part)
    return b"".join(parts)


def _last(data: bytes) -> Tail:
    """The last sealed record in whole lines of a window, and what is torn at its very end."""
    position, torn_from = len(data), None
    while position > 0:
        begin = data.rfind(b"\n", 0, position - 1) + 1
        line = data[begin:position].removesuffix(b"\n")
        digest, ended = sealed(line), data[position - 1 : position] == b"\n"
        record = parsed(line) if ended or digest is not None else None
        if record is not None:
            torn_from = position if torn_from is None else torn_from
            if digest is not None and isinstance(record.get("n"), int):
                return Tail(record["n"], digest.decode(), _torn(data[torn_from:]), not ended)
        position = begin
    return Tail(torn=_torn(data[torn_from or 0 :]))


def _torn(data: bytes) -> Torn | None:
    if not data:
        return None
    body = data.removesuffix(b"\n")
    return Torn(len(body), sha256(body).hexdigest(), data.endswith(b"\n"))


def first_of(descriptor: int) -> tuple[int, float]:
    """Number and time (seconds since 1970) of a segment's first record; zeros when it is none. Raises `OSError`."""
    line = os.pread(descriptor, MOST_OF_A_LINE, 0).partition(b"\n")[0]
    record = (parsed(line) if sealed(line) is not None else None) or {}
    try:
        return int(record["n"]), datetime.fromisoformat(record["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0, 0.0


def lines_backwards(path: Path) -> Iterator[bytes]:
    """The lines of all segments, newest first, in constant memory. Raises `OSError`."""
    seen: set[tuple[int, int]] = set()
    try:
        newest = open_to_read(path)
    except FileNotFoundError:
        pass
    else:
        yield from _backwards(newest, seen)
    for segment in reversed(closed(path)):
        # What was closed since we began has been read as the growing file.
        yield from _backwards(open_to_read(segment), seen)


def _backwards(descriptor: int, seen: set[tuple[int, int]]) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        position = status.st_size
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
