"""The growing end of the audit log: one record after the other, whichever process writes it.

All writers take the file's lock (flock) to append. Each keeps in memory where the chain stands and reads the end of the
file again only when it is not as they left it.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from systemmanager.audit.record import FORMAT, GENESIS, Record, seal
from systemmanager.audit.segments import APPEND, Torn, closed, first_of, name_of, open_to_read, regular, tail_of
from systemmanager.audit.signing import Signer

ROTATE_AGAIN = 60.0
"""Seconds until a segment that could not be closed is tried again."""

MOST_RETIRED = 16
"""Closed segments that may wait for the next sync."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a segment is closed, and after how many records or seconds a checkpoint is written."""

    segment_bytes: int = 64 * 1024 * 1024
    segment_seconds: float = 7 * 24 * 3600.0
    checkpoint_records: int = 1000
    checkpoint_seconds: float = 30.0


@dataclass(slots=True)
class Place:
    """Where the chain stands, as this process knows it.

    `file` and `end`: device, inode and length of the growing segment; `first` and `began`: number and time of its first
    record; `unsigned`: records since the last checkpoint, the first of them written at `since`.
    """

    file: tuple[int, int] = (0, 0)
    end: int = 0
    n: int = 0
    head: str = GENESIS
    first: int = 0
    began: float = 0.0
    unsigned: int = 0
    since: float = 0.0


class Chain:
    """Appends records. All methods are quick and none waits: `BlockingIOError` says that another process writes."""

    def __init__(self, path: Path, signer: Signer | None, limits: Limits, clock: Callable[[], float]) -> None:
        self.place = Place()
        self.run: str | None = None
        self.latest: bytes | None = None
        """The last checkpoint that this process wrote, as its line."""
        self.trouble: str | None = None
        self.folder_changed = False
        self.retired: list[int] = []
        """Descriptors of segments that are closed and may not be on the disk yet."""
        self.descriptor: int | None = None
        self._path, self._name = path, str(path)
        self._signer, self._limits, self._clock = signer, limits, clock
        self._rotate_after = 0.0

    def write(self, records: Sequence[Record]) -> None:
        """Append the records, in order, all or none. Raises `OSError`."""
        descriptor = self._lock()
        try:
            if records:
                descriptor = self._rotated(descriptor, records[0].time)
                self._append(descriptor, records)
        finally:
            _unlock(self.descriptor)

    def checkpoint(self) -> bool:
        """Sign what is not signed yet; whether there was anything. Raises `OSError`."""
        if self._signer is None or not self.place.unsigned:
            return False
        descriptor = self._lock()
        try:
            self._put(descriptor, [self._signed()])
        finally:
            _unlock(self.descriptor)
        return True

    def close(self) -> None:
        """Close all files; a later write opens them again."""
        self._retire()
        while self.retired:
            os.close(self.retired.pop())

    # --- The lock, and what others did since --------------------------------------------------------------------------

    def _lock(self) -> int:
        """The growing segment's descriptor, locked, with `place` as the file is. Raises `OSError`."""
        for _ in range(100):
            descriptor = self.descriptor if self.descriptor is not None else self._open()
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = False
            try:
                status = os.fstat(descriptor)
                if self._still_there(status):
                    place = self.place
                    if status.st_size != place.end or (status.st_dev, status.st_ino) != place.file:
                        self._refresh(descriptor, status)
                    kept = True
                    return descriptor
            finally:
                if not kept:
                    _unlock(descriptor)
            self._retire()
        raise OSError("it is replaced all the time")

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._name, APPEND)
        except FileNotFoundError:
            descriptor = os.open(self._name, APPEND | os.O_CREAT, 0o600)
            self.folder_changed = True
        self.descriptor = regular(descriptor, self._path)
        return descriptor

    def _still_there(self, status: os.stat_result) -> bool:
        """Whether the file is still the one at the path: another process may have closed the segment."""
        try:
            found = os.lstat(self._name)
        except FileNotFoundError:
            return False
        if found.st_ino == status.st_ino and found.st_dev == status.st_dev:
            return True
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{self._name} is not a regular file")
        return False

    def _retire(self) -> None:
        if self.descriptor is not None:
            self.retired.append(self.descriptor)
            self.descriptor = None
        while len(self.retired) > MOST_RETIRED:
            os.fdatasync(self.retired[0])
            os.close(self.retired.pop(0))

    def _refresh(self, descriptor: int, status: os.stat_result) -> None:
        """Read where the chain stands. What was cut off or taken away shows: the chain goes on from what we know."""
        known, file = self.place, (status.st_dev, status.st_ino)
        tail = tail_of(descriptor, status.st_size)
        n, head = tail.n, tail.head
        if n == 0:
            n, head = self._before()
        if known.n > n:
            n, head = known.n, known.head
        first, began = (known.first, known.began) if known.file == file else first_of(descriptor)
        # Whatever this process did not see written is taken as not signed: one checkpoint too many does no harm.
        unsigned = known.unsigned + n - known.n if known.n else n and self._limits.checkpoint_records
        since = known.since if known.unsigned else self._clock()
        self.place = Place(file, status.st_size, n, head, first, began, unsigned, since)
        if tail.torn is not None:
            self._mark(descriptor, tail.torn)
        elif tail.open_line:
            self._put(descriptor, [], before=b"\n")

    def _before(self) -> tuple[int, str]:
        """Number and hash of the last record in the newest closed segment."""
        for segment in reversed(closed(self._path)):
            descriptor = open_to_read(segment)
            try:
                tail = tail_of(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            if tail.n:
                return tail.n, tail.head
        return 0, GENESIS

    def _mark(self, descriptor: int, torn: Torn) -> None:
        """Say in the chain which bytes before the next line are no record: they stay, and can't be swapped later."""
        details = {"bytes": torn.length, "sha256": torn.digest}
        record = Record("event", "", "torn", "gateway", arguments=details, time=self._clock())
        self._put(descriptor, [record], before=b"" if torn.ended else b"\n")

    # --- Writing ------------------------------------------------------------------------------------------------------

    def _append(self, descriptor: int, records: Sequence[Record]) -> None:
        """Write the records, and the checkpoints that are due before or between them. Raises `OSError`."""
        place, most = self.place, self._limits.checkpoint_records
        if self._signer is None:
            self._put(descriptor, records)
            return
        late = records[0].time - place.since > self._limits.checkpoint_seconds and place.unsigned > 0
        lines: list[Record] = []
        unsigned = place.unsigned
        for record in records:
            if unsigned >= most or late or (place.n == 0 and not lines):
                lines.append(self._signed())
                unsigned, late = 0, False
            lines.append(record)
            unsigned += 1
        self._put(descriptor, lines)

    def _signed(self) -> Record:
        assert self._signer is not None
        details = {"format": FORMAT, "key": self._signer.key_id, "every": self._limits.checkpoint_records}
        return Record("checkpoint", "", "checkpoint", "gateway", arguments=details, time=self._clock())

    def _put(self, descriptor: int, records: Sequence[Record], before: bytes = b"") -> None:
        """Chain the records and write them; `place` moves on when all of them are in the file."""
        place, lines, latest = self.place, [before], None
        n, head, unsigned, since = place.n, place.head, place.unsigned, place.since
        for record in records:
            n += 1
            fields = record.fields()
            fields["n"], fields["after"] = n, head
            if self.run is not None:
                fields["run"] = self.run
            if record.phase == "checkpoint" and self._signer is not None:
                fields["signature"] = self._signer.sign(fields)
            line, head = seal(fields)
            lines.append(line)
            if record.phase == "checkpoint":
                latest, unsigned = line, 0
            else:
                since = since if unsigned else record.time
                unsigned += 1
        data = b"".join(lines)
        _write_whole(descriptor, data, place.end)
        if place.end == 0 and records:
            place.first, place.began = place.n + 1, records[0].time
        place.end += len(data)
        place.n, place.head, place.unsigned, place.since = n, head, unsigned, since
        self.latest = latest or self.latest

    def _rotated(self, descriptor: int, now: float) -> int:
        """The descriptor to write to: a new one when the segment is full or old. Raises `OSError`."""
        place, limits = self.place, self._limits
        old = limits.segment_seconds <= now - place.began and place.began > 0
        if not (place.end >= limits.segment_bytes or old) or place.first == 0 or now < self._rotate_after:
            return descriptor
        if self._signer is not None:
            self._put(descriptor, [self._signed()])
        target = name_of(self._path, place.first)
        try:
            if os.path.lexists(target):
                raise FileExistsError(f"{target} is there already")
            self._path.rename(target)
        except OSError as error:
            self.trouble = f"a full segment can't be closed: {error.strerror or error}"
            self._rotate_after = now + ROTATE_AGAIN
            return descriptor
        self.trouble, self.folder_changed = None, True
        _unlock(descriptor)
        self._retire()
        return self._lock()


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_whole(descriptor: int, data: bytes, end: int) -> None:
    """Write all of it, or leave the file as it was. Raises `OSError`."""
    try:
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
