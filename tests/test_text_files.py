"""Lines at the borders of blocks, held against the plain way of reading the whole text."""

import random
from collections.abc import Sequence

import pytest

from systemmanager.operations import text_files
from systemmanager.operations.text_files import Reader, last_lines, lines_from, matching_lines
from systemmanager.ports import FileInfo
from tests.support import run


class Text:
    """A Files port that holds one file, and remembers the longest read."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def info(self, path: str) -> FileInfo:
        raise AssertionError("not asked")

    async def list(self, path: str) -> Sequence[FileInfo]:
        raise AssertionError("not asked")

    async def read(self, path: str, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


@pytest.mark.parametrize("seed", range(8))
def test_small_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 16)  # tail reads 4 bytes at a time
    chance = random.Random(seed)
    for _ in range(60):
        text = "".join(chance.choice(["a", "ä", "€", "\n", "\n", "ab"]) for _ in range(chance.randrange(40)))
        lines = text.removesuffix("\n").split("\n") if text else []
        reader, count, offset = Reader(Text(text.encode()), "/x"), chance.randrange(1, 6), chance.randrange(6)
        size = len(text.encode())
        head = run(lines_from(reader, offset, count))
        assert (head.text, head.more) == ("\n".join(lines[offset : offset + count]), offset + count < len(lines)), text
        end = max(0, len(lines) - offset)
        tail = run(last_lines(reader, size, count, offset))
        assert tail.text == "\n".join(lines[max(0, end - count) : end]), (text, count, offset)
        assert tail.more == (end - count > 0), (text, count, offset)
        found = run(matching_lines(reader, "a*b", offset, 100)).lines
        wanted = [(at, line) for at, line in enumerate(lines) if "a" in line and "b" in line[line.find("a") :]]
        assert found == [hit for hit in wanted if hit[0] >= offset], text


def test_a_line_without_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 1000)
    monkeypatch.setattr(text_files, "_LONGEST", 5000)

    async def longest(reader: Reader) -> int:
        return max([len(piece) async for piece in text_files._pieces(reader)])

    assert run(longest(Reader(Text(b"first\n" + b"x" * 100_000 + b"\nlast"), "/x"))) <= 7000
