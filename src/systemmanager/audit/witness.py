"""A second place for the checkpoints: whoever cuts the log has to reach that, too."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from systemmanager.audit.record import parsed, sealed
from systemmanager.audit.segments import APPEND, locked_to_read, open_to_read, regular
from systemmanager.audit.signing import Keys

MOST_OF_A_CHECKPOINT = 4096
MOST_NAMED = 10
"""Lines that are named one by one."""


def add(path: Path, line: bytes, keys: Keys) -> str | None:
    """Append a checkpoint, on the disk when this returns; one that is older than the last there says nothing new.

    Only a checkpoint signed by one of `keys` counts as the last: whoever can write there must not silence the rest.
    Answers what stands behind it, if anything. Raises `OSError`. May block as long as the place does: not to be called
    in the event loop.
    """
    descriptor = regular(os.open(path, APPEND | os.O_CREAT, 0o600), path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, MOST_OF_A_CHECKPOINT, max(0, size - MOST_OF_A_CHECKPOINT))
        last, spoiled = _last(end, keys)
        if last < (parsed(line) or {"n": 0})["n"]:
            whole = line if not end or end.endswith(b"\n") else b"\n" + line
            if os.write(descriptor, whole) < len(whole):
                raise OSError(f"{path} has no room left")
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    return f"{path} ended with what is no checkpoint of this log: see audit verify" if spoiled else None


def _last(end: bytes, keys: Keys) -> tuple[int, bool]:
    """Number of the last genuine checkpoint at the end of a witness file, and whether it is not the last line."""
    spoiled = False
    for line in reversed(end.rstrip(b"\n").split(b"\n")):
        if (record := _checkpoint(line)) is not None and keys.objection(record) is None:
            return record["n"], spoiled
        spoiled = spoiled or bool(line)
    return 0, spoiled


def _checkpoint(line: bytes) -> dict[str, Any] | None:
    record = parsed(line) if sealed(line) is not None else None
    return record if record is not None and isinstance(record.get("n"), int) else None


class Witness:
    """The checkpoints of a witness file as they stood when it was opened, in order, in constant memory."""

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(open_to_read(path), "rb")
        with locked_to_read(self._file.fileno()):
            self._end = os.fstat(self._file.fileno()).st_size
            self.torn = self._without_line_feed()
        self.name = path.name
        self.line = 0
        self.unreadable = 0
        self.bad_lines: list[int] = []
        """The first few of them."""
        self.unreadable_end = 0
        """Of these, how many stand behind the last checkpoint."""

    def checkpoints(self) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
        """Line number, line and record of each; what is no record is counted."""
        while self._file.tell() < self._end:
            line = self._file.readline(MOST_OF_A_CHECKPOINT).rstrip(b"\n")
            self.line += 1
            record = _checkpoint(line)
            if record is not None:
                self.unreadable_end = 0
                yield self.line, line, record
            else:
                self.unreadable += 1
                self.bad_lines += [self.line] if len(self.bad_lines) < MOST_NAMED else []
                self.unreadable_end += 1

    def _without_line_feed(self) -> bytes:
        """What stands behind the last line feed: a crash cuts a line off there."""
        begin = max(0, self._end - MOST_OF_A_CHECKPOINT)
        return os.pread(self._file.fileno(), self._end - begin, begin).rpartition(b"\n")[2]

    def close(self) -> None:
        self._file.close()
