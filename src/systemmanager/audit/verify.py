"""Whether the audit log is as it was written: every hash, every signature, nothing missing, up to the last record.

One pass in constant memory; the gateway may write meanwhile.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any

from systemmanager.audit.record import FORMAT, GENESIS, follows, format_of, parsed, sealed
from systemmanager.audit.segments import MOST_OF_A_LINE, closed, locked_to_read, open_to_read
from systemmanager.audit.signing import Keys
from systemmanager.audit.witness import Witness

CHUNK = 1024 * 1024
MISSES = 20
SLACK = 64
"""Records without a checkpoint beyond those agreed: marks of what crashes tore."""

_CHECKPOINT = b'"phase":"checkpoint"'


class Broken(Exception):
    """The first thing that is wrong: in which file, on which line, and what."""

    def __init__(self, file: str, line: int, what: str) -> None:
        super().__init__(f"{file}:{line}: {what}")
        self.file, self.line, self.what = file, line, what


@dataclass(slots=True)
class Found:
    """What was read of a sound log. `unsigned` records stand behind the last checkpoint."""

    records: int = 0
    last: int = 0
    segments: int = 0
    checkpoints: int = 0
    torn: int = 0
    unsigned: int = 0
    witnessed: int = 0
    unreadable: int = 0
    bad_lines: tuple[int, ...] = ()
    """Which lines of the witness these are, the first few."""
    witness_torn: bool = False
    """Whether the last of them is the beginning of a checkpoint of this log: a crash cut it off."""
    at: str = ""
    """Time of the last checkpoint."""


@dataclass(slots=True)
class _Torn:
    """Lines that are no record, until the chain says which bytes it holds to be torn."""

    line: int
    length: int
    digest: Any


def verify(path: Path, keys: Keys, *, witness: Path | None = None, partial: bool = False) -> Found:
    """Read the whole log. `partial`: older segments may be elsewhere.

    Raises `Broken` for the first bad line, `OSError` for files that can't be read.
    """
    with ExitStack() as held:
        seen = None if witness is None else _Seen(held.enter_context(closing(Witness(witness))), keys)
        check = _Check(keys, seen, partial)
        for name, growing, lines in held.enter_context(closing(_files(path))):
            check.file(name)
            for line in lines:
                check.line(line)
            check.end_of_file(growing)
        return check.end()


class _Check:
    """The chain up to the line that was read last."""

    def __init__(self, keys: Keys, seen: "_Seen | None", partial: bool) -> None:
        self.found = Found()
        self._keys, self._seen, self._partial = keys, seen, partial
        self._head = GENESIS.encode()
        self._every = 0
        self._name, self._line = "", 0
        self._torn: _Torn | None = None

    def file(self, name: str) -> None:
        self._name, self._line = name, 0
        self.found.segments += 1

    def line(self, line: bytes) -> None:
        """One line, without its line feed. Raises `Broken`."""
        self._line += 1
        digest = sealed(line)
        if digest is None:
            self._not_sealed(line)
            return
        found = self.found
        if follows(line) != self._head:
            self._misplaced(line)
        if self._torn is not None:
            self._marked(line)
        self._head = digest
        found.records += 1
        found.last += 1
        found.unsigned += 1
        if _CHECKPOINT in line:
            self._checkpoint(line)
        elif found.last == 1 and not self._partial:
            self._broken("the log does not begin with a signed checkpoint: its beginning was replaced")
        if self._every and found.unsigned > self._every + SLACK:
            self._broken(f"more than {self._every} records without a signed checkpoint: checkpoints were taken out")

    def _broken(self, what: str, line: int | None = None) -> None:
        raise Broken(self._name, self._line if line is None else line, what)

    def _not_sealed(self, line: bytes) -> None:
        if parsed(line) is not None and self._torn is None:
            self._broken("this record was changed, or is none of the log: its hash does not fit")
        if self._torn is None:
            self._torn = _Torn(self._line, len(line), sha256(line))
            return
        self._torn.length += 1 + len(line)
        self._torn.digest.update(b"\n" + line)

    def _marked(self, line: bytes) -> None:
        """The torn bytes are the ones that the next record says were torn."""
        torn, record = self._torn, parsed(line) or {}
        assert torn is not None
        said = {"bytes": torn.length, "sha256": torn.digest.hexdigest()}
        if (record.get("phase"), record.get("tool"), record.get("arguments")) != ("event", "torn", said):
            self._broken("this is no record", torn.line)
        self.found.torn += 1
        self._torn = None

    def _misplaced(self, line: bytes) -> None:
        if self._torn is not None:
            self._broken("this is no record", self._torn.line)
        due = self.found.last + 1
        n = (parsed(line) or {}).get("n")
        if self.found.records == 0 and isinstance(n, int) and n > 1:
            if self._partial:
                self.found.last, self._head = n - 1, follows(line)
                return
            self._broken(f"the log begins with record {n}: the {n - 1} before it are missing")
        if n == due:
            self._broken(f"record {n} does not follow the record before it: one of them is from another log or forged")
        self._broken(f"record {n} stands where record {due} is due: records were removed, moved or put in")

    def _checkpoint(self, line: bytes) -> None:
        record, found = parsed(line) or {}, self.found
        if record.get("phase") != "checkpoint":
            if found.last == 1 and not self._partial:
                self._broken("the log does not begin with a signed checkpoint: its beginning was replaced")
            return
        if why := self._keys.objection(record):
            self._broken(f"this checkpoint {why}: the chain before it may be forged")
        if record.get("n") != found.last:
            self._broken(f"this checkpoint is record {record.get('n')}, but {found.last} is due")
        if format_of(record) > FORMAT:
            self._broken(
                f"this log is of format {format_of(record)}, of a newer version of the gateway: verify it with that"
            )
        every = record["arguments"].get("every")
        # Processes may have different settings: each says its own before its first record.
        self._every = max(self._every, every if isinstance(every, int) else 0)
        found.unsigned, found.at = 0, str(record.get("time"))
        found.checkpoints += 1
        if self._seen is not None:
            self._seen.compare(found.last, line, self._broken)

    def end_of_file(self, growing: bool) -> None:
        if self._torn is not None:
            what = "this is no record: a crash cut it off and no gateway has started since, or the log was cut"
            self._broken(what, self._torn.line)
        if not growing and self.found.unsigned:
            self._broken("this segment does not end with a signed checkpoint: its end was cut off")

    def end(self) -> Found:
        if not self.found.records:
            self._broken("the log is empty", 1)
        if self._seen is not None:
            self._seen.rest(self.found.last, self._broken)
            seen = self._seen
            self.found.witnessed, self.found.unreadable = seen.count, seen.unreadable
            self.found.bad_lines, self.found.witness_torn = seen.bad_lines, seen.torn
        return self.found


class _Seen:
    """The witness's checkpoints beside the log's own: both in order."""

    def __init__(self, witness: Witness, keys: Keys) -> None:
        self._witness, self._keys = witness, keys
        self._all = witness.checkpoints()
        self._next = next(self._all, None)
        self._first: int | None = None
        self.count = 0
        self.torn = False

    @property
    def unreadable(self) -> int:
        return self._witness.unreadable

    @property
    def bad_lines(self) -> tuple[int, ...]:
        return tuple(self._witness.bad_lines)

    def compare(self, n: int, line: bytes, broken: Any) -> None:
        """The log's checkpoint `n` against the witness's. Raises `Broken`."""
        first, self._first = self._first is None, n
        if self._witness.torn and len(line) > len(self._witness.torn) and line.startswith(self._witness.torn):
            self.torn = True
        while self._next is not None and self._next[2]["n"] <= n:
            number, known, record = self._next
            if known != line and not (first and record["n"] < n):
                self._genuine(number, record)
                broken(f"the witness has seen another record {record['n']} ({self._witness.name}:{number})")
            self.count += known == line
            self._next = next(self._all, None)

    def rest(self, last: int, broken: Any) -> None:
        """What the witness saw after the log's end. Raises `Broken`."""
        if self._next is not None:
            number, _, record = self._next
            self._genuine(number, record)
            if record["n"] <= last:
                broken(f"checkpoint {record['n']} is missing, the witness has seen it ({self._witness.name}:{number})")
            broken(f"the log ends at record {last}, the witness has seen record {record['n']}: the tail was cut off")
        if self.count == 0:
            raise Broken(self._witness.name, max(1, self._witness.line), "the witness holds no checkpoint of this log")
        spoiled = self._witness.unreadable_end
        if spoiled > self.torn:
            what = "of the witness after its last checkpoint is no part of this log: somebody else wrote there"
            lines = "1 line" if spoiled == 1 else f"{spoiled} lines"
            raise Broken(self._witness.name, self._witness.line - spoiled + 1, f"{lines} {what}")

    def _genuine(self, number: int, record: dict[str, Any]) -> None:
        if why := self._keys.objection(record):
            raise Broken(self._witness.name, number, f"the witness's checkpoint {why}")


def _files(path: Path) -> Generator[tuple[str, bool, Iterator[bytes]], None, None]:
    """Name, whether it grows, and lines of each segment, oldest first. Raises `OSError`; `Broken` for a missing one.

    A segment that grows when this begins is the last: what comes after it is for the next time.
    """
    with closing(_growing(path)) as growing:
        for segment in closed(path):
            with os.fdopen(open_to_read(segment), "rb", buffering=0) as opened:
                if os.path.samestat(os.fstat(opened.fileno()), os.fstat(growing.opened.fileno())):
                    break
                yield segment.name, False, _lines(opened, lambda: b"")
        yield path.name, True, _lines(growing.opened, growing.more)


def _growing(path: Path) -> "_Growing":
    """The growing segment; while one is closed, its name is free for a moment. Raises `OSError`, `Broken`."""
    for _ in range(MISSES):
        try:
            return _Growing(path)
        except FileNotFoundError:
            time.sleep(0.005)
    if closed(path):
        raise Broken(path.name, 1, "the growing segment is missing")
    return _Growing(path)


class _Growing:
    """The segment that a gateway may be writing to."""

    def __init__(self, path: Path) -> None:
        self.opened = os.fdopen(open_to_read(path), "rb", buffering=0)

    def close(self) -> None:
        self.opened.close()

    def more(self) -> bytes:
        """What there is at its end while no writer is in the middle of a record."""
        with locked_to_read(self.opened.fileno()):
            return self.opened.read(CHUNK) or b""


def _lines(file: FileIO, more: Callable[[], bytes]) -> Iterator[bytes]:
    """The lines of a file, also one whose line feed is missing. A line of more than a megabyte comes in pieces."""
    rest = b""
    while chunk := file.read(CHUNK) or more():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MOST_OF_A_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest
