"""Lines of a text file that may be huge, growing, or no text at all; read in blocks, bounded in memory and time."""

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from systemmanager.errors import NotFound, PathOutside, PrivilegeRequired, Unsupported
from systemmanager.ports import Files, Shown

BLOCK = 256 * 1024
SAMPLE = 8192
MAX_TEXT = 64 * 1024
MAX_LINE = 2000
CUT = "... [line cut]"
_MAX_TAIL = 8 * 1024 * 1024
_LONGEST = 1024 * 1024
"""Bytes without a line break that are held at most."""

NOT_READABLE = (NotFound, PathOutside, PrivilegeRequired, Unsupported)

_KINDS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip",
    b"\x7fELF": "ELF program", b"LPKSHHRH": "systemd journal", b"SQLite format 3\x00": "SQLite database",
    b"\x89PNG": "PNG image", b"\xff\xd8\xff": "JPEG image", b"%PDF-": "PDF", b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
_CONTROL = bytes(sorted({*range(32), 127} - set(b"\t\n\r\x0c\x08\x1b")))


@dataclass(slots=True)
class Budget:
    """Seconds of wall time that one action may go on; less than the operation's, so that it can say how far it came."""

    seconds: float = 20.0
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> bool:
        return time.monotonic() - self.started > self.seconds


@dataclass(frozen=True, slots=True)
class Reader:
    files: Files
    path: str

    async def block(self, offset: int, size: int) -> bytes:
        return await self.files.read(self.path, offset, size)

    async def binary(self, offset: int = 0) -> str | None:
        """What the content is when it is no text; None for text."""
        return kind_of(await self.block(offset, SAMPLE), start=offset == 0)


@dataclass(frozen=True, slots=True)
class Part:
    """Some lines. `next` is the offset to go on with when there is `more`."""

    text: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)
    more: bool = False
    next: int = 0
    note: str | None = None


def kind_of(sample: bytes, *, start: bool) -> str | None:
    """What a piece of a file is when it is no text. A log with a few NULs after a power cut is still text."""
    if start:
        for magic, kind in _KINDS.items():
            if sample.startswith(magic):
                return kind
    control = len(sample) - len(sample.translate(None, _CONTROL))
    undecodable = sample.decode("utf-8", "replace").count("\ufffd")
    return "binary" if (control + undecodable) * 100 > len(sample) * 20 else None


def line_text(line: bytes) -> str:
    """One line for people, without the CR of a file from elsewhere; a long one is cut and says so."""
    line = line.removesuffix(b"\r")
    if len(line) <= MAX_LINE:
        return line.decode("utf-8", "replace")
    return line[:MAX_LINE].decode("utf-8", "ignore") + CUT


async def _pieces(reader: Reader) -> AsyncIterator[bytes]:
    """The file from its start in pieces of whole lines; what a line holds beyond `_LONGEST` bytes is left out."""
    offset, carry, dropping = 0, b"", False
    while block := await reader.block(offset, BLOCK):
        offset += len(block)
        if dropping:
            _, found, block = block.partition(b"\n")
            if not found:
                continue
            dropping, carry = False, carry + found
        carry += block
        if end := carry.rfind(b"\n") + 1:
            yield carry[:end]
            carry = carry[end:]
        dropping = len(carry) > _LONGEST
    if carry:
        yield carry


def _count(piece: bytes) -> int:
    return piece.count(b"\n") + (not piece.endswith(b"\n"))


async def lines_from(reader: Reader, offset: int, count: int) -> Part:
    """`count` lines from line `offset` on, fewer when they are long."""
    clock, skipped, kept, size = Budget(), 0, list[str](), 0
    async for piece in _pieces(reader):
        if clock.spent:
            return Part(
                "\n".join(kept), note=f"Stopped at line {skipped} after {clock.seconds:g} s: use tail or search."
            )
        if skipped + (number := _count(piece)) <= offset:
            skipped += number
            continue
        for line in piece.removesuffix(b"\n").split(b"\n")[offset - skipped :]:
            text = line_text(line)
            if len(kept) == count or (kept and size + len(text) > MAX_TEXT):
                return Part("\n".join(kept), more=True, next=offset + len(kept))
            kept.append(text)
            size += len(text) + 1
        skipped = offset
    return Part("\n".join(kept), note=None if kept else _how_many(skipped))


def _how_many(lines: int) -> str | None:
    """Said where the offset lies behind the end."""
    return f"The file has {lines} lines." if lines else None


async def last_lines(reader: Reader, size: int, count: int, offset: int) -> Part:
    """The last `count` lines before the last `offset` ones, read backwards from the end."""
    wanted, position, blocks, breaks = count + offset, size, list[bytes](), 0
    while position > 0 and breaks <= wanted and size - position < _MAX_TAIL:
        step = min(BLOCK // 4, position)
        position -= step
        blocks.append(await reader.block(position, step))
        breaks += blocks[-1].count(b"\n")
    lines = b"".join(reversed(blocks)).removesuffix(b"\n").split(b"\n") if size else []
    if position > 0 and len(lines) > 1:
        del lines[0]  # its beginning lies further back
    elif position > 0:
        lines = [b"..." + lines[0][-MAX_LINE + 3 :]]
    kept, held = list[str](), 0
    for line in reversed(lines[max(0, len(lines) - wanted) : max(0, len(lines) - offset)]):
        text = line_text(line)
        if kept and held + len(text) > MAX_TEXT:
            break
        kept.append(text)
        held += len(text) + 1
    more = position > 0 or len(lines) > offset + len(kept)
    note = f"Only the last {_MAX_TAIL >> 20} MiB were looked at." if position > 0 and breaks <= wanted else None
    note = note or (None if kept or position > 0 else _how_many(len(lines)))
    return Part("\n".join(reversed(kept)), more=more and bool(kept), next=offset + len(kept), note=note)


async def matching_lines(reader: Reader, pattern: str, offset: int, count: int, shown: Shown = str) -> Part:
    """Lines from line `offset` on that hold `pattern`: its parts between `*` in order, ASCII case ignored.

    What is masked in them holds nothing.
    """
    parts = [part for part in pattern.encode("utf-8", "replace").lower().split(b"*") if part]
    clock, passed, found, size = Budget(), 0, list[tuple[int, str]](), 0
    async for piece in _pieces(reader):
        if clock.spent:
            note = f"Stopped at line {passed} after {clock.seconds:g} s."
            return Part(lines=found, more=True, next=max(passed, offset), note=note)
        for number, line in _hits(piece, parts):
            if passed + number < offset or not _in_order(_seen(line, shown), parts):
                continue
            text = line_text(line)
            if len(found) == count or (found and size + len(text) > MAX_TEXT):
                return Part(lines=found, more=True, next=passed + number)
            found.append((passed + number, text))
            size += len(text) + 1
        passed += _count(piece)
    return Part(lines=found, note=_how_many(passed) if passed <= offset else None)


def _seen(line: bytes, shown: Shown) -> bytes:
    return shown(line.decode("utf-8", "replace")).encode("utf-8", "replace").lower()


def _hits(piece: bytes, parts: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number within the piece, and text, of each line that holds all parts in order; linear in the piece's length."""
    lowered, rarest = piece.lower(), max(parts, key=len, default=b"")
    if not all(part in lowered for part in parts):
        return
    at = counted = number = 0
    while at < len(piece) and (hit := lowered.find(rarest, at)) >= 0:
        start = lowered.rfind(b"\n", 0, hit) + 1
        end = lowered.find(b"\n", hit)
        end = len(piece) if end < 0 else end
        if _in_order(lowered[start:end], parts) and not _in_key(lowered, start):
            number += lowered.count(b"\n", counted, start)
            counted = start
            yield number, piece[start:end]
        at = end + 1


def _in_key(lowered: bytes, at: int) -> bool:
    """Whether a line is one of a private key: that it is a secret can't be seen from the line alone."""
    begins = lowered.rfind(b"-----begin", 0, at)
    if begins < 0 or lowered.rfind(b"-----end", begins, at) > begins:
        return False
    return b"private key" in lowered[begins : begins + 64].partition(b"\n")[0]


def _in_order(line: bytes, parts: list[bytes]) -> bool:
    at = 0
    for part in parts:
        found = line.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
