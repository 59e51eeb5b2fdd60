"""Which processes write intents, and which of them are gone.

A process that may do something holds a lock on a file of its own beside the log, `audit.runs/<id>`, as long as it
lives. The kernel lets go of the lock when the process ends, however it ends and in whatever namespace it ran. The file
says from which record on the process may have open intents.
"""

import fcntl
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from systemmanager.audit.record import Record, parsed
from systemmanager.audit.segments import APPEND, lines_backwards, open_to_read

ENDED = "the gateway's process ended before it could write how this went"
HANDED_OVER = "handed_over"
GOES_ON = "the gateway's process ended; the job goes on, and another process follows it"
LOOK_EVERY = 256
"""Lines after which a search looks whether it is past its beginning."""


class Run:
    """This process in the log."""

    def __init__(self, log: Path) -> None:
        self._folder = _folder(log)
        self.id = secrets.token_hex(4)
        self._descriptor: int | None = None

    @property
    def begun(self) -> bool:
        return self._descriptor is not None

    def begin(self, n: int) -> None:
        """Make the file, locked before anybody can see it; the intents of this run come after record `n`.

        Raises `OSError`.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden, seen = self._folder / f".{self.id}", self._folder / self.id
        descriptor = os.open(hidden, (APPEND & ~os.O_APPEND) | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.pwrite(descriptor, b"%020d" % n, 0)
            os.fsync(descriptor)
            hidden.rename(seen)
            sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            seen.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor

    def settled(self, n: int) -> None:
        """No intent up to record `n` is open; to be called when their outcomes are on the disk."""
        if self._descriptor is not None:
            os.pwrite(self._descriptor, b"%020d" % n, 0)

    def end(self, *, clean: bool) -> None:
        """The process stops. Unless that is `clean`, the next start looks for what it left open."""
        if self._descriptor is not None:
            if clean:
                with suppress(OSError):
                    (self._folder / self.id).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _folder(log: Path) -> Path:
    return log.with_name(f"{log.stem}.runs")


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Ended:
    """A run whose process is gone; its file is locked by us until `forget` or `leave`."""

    def __init__(self, path: Path, descriptor: int, log: Path) -> None:
        self._path, self._descriptor, self._log = path, descriptor, log

    def closings(self, now: float, handed_over: Collection[str] = ()) -> list[Record]:
        """An outcome, `unknown` or `handed_over`, for each of its intents that has none, oldest first.

        Raises `OSError`.
        """
        number = os.pread(self._descriptor, 20, 0)
        since, mark = int(number) if number.isdigit() else 0, f'"run":"{self._path.name}"'.encode()
        closed: set[tuple[str, str | None]] = set()
        found = []
        for count, line in enumerate(lines_backwards(self._log)):
            marked = mark in line
            if not (marked or count % LOOK_EVERY == 0):
                continue
            record = parsed(line) or {}
            if record.get("n", since + 1) <= since:
                break
            key = (str(record.get("call_id")), record.get("target"))
            if record.get("phase") == "outcome":
                closed.add(key)  # also by one that closed for it and was killed before it could forget it
            elif record.get("run") != self._path.name or record.get("dry_run") or key in closed:
                continue
            elif record.get("phase") == "intent":
                found.append(_closing(record, now, record.get("call_id") in handed_over))
        return found[::-1]

    def forget(self) -> None:
        """All its intents are closed."""
        self._path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        os.close(self._descriptor)


def _closing(intent: dict[str, Any], now: float, goes_on: bool) -> Record:
    return Record(
        "outcome",
        str(intent.get("call_id", "")),
        str(intent.get("tool", "")),
        str(intent.get("subject", "")),
        str(intent.get("kind", "")),
        intent.get("target"),
        intent.get("risk"),
        arguments={"run": intent.get("run")},
        registry=intent.get("registry"),
        policy=intent.get("policy"),
        code=HANDED_OVER if goes_on else "unknown",
        reason=GOES_ON if goes_on else ENDED,
        time=now,
    )


def ended(log: Path) -> Iterator[Ended]:
    """The runs whose processes are gone. Raises `OSError`."""
    try:
        paths = sorted(_folder(log).iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        hidden = path.name.startswith(".")
        try:
            descriptor = open_to_read(path)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        if hidden and os.fstat(descriptor).st_size:
            path.unlink(missing_ok=True)  # its process was gone before anybody could see it
        if hidden or not path.exists():  # or another process was quicker
            os.close(descriptor)
            continue
        yield Ended(path, descriptor, log)
