"""The audit log's file: one line per Record whatever is in it, durable, readable backwards, hard to break."""

import asyncio
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from systemmanager.audit import segments
from systemmanager.audit.log import AuditLog
from systemmanager.audit.reading import query
from systemmanager.audit.record import Record, seal
from systemmanager.errors import InvalidArguments
from tests.support import run


def record(call_id: str = "c1", **fields: Any) -> Record:
    return Record("intent", call_id, fields.pop("tool", "t"), "me", time=fields.pop("time", 1_000_000.0), **fields)


def written(path: Path, *records: Record) -> None:
    log = AuditLog(path)
    for one in records:
        log.append_now(one)
    log.close()


def line_of(one: Record) -> bytes:
    return seal(one.fields())[0]


TEXTS = {
    "newline": 'a\nb\r\nc"}\n{"phase":"outcome"}',
    "separators": "a\u2028b\u2029c\x85d",
    "surrogate": "a\ud800b",
    "controls": "\x00\x1b[31m\x7f",
    "bidi": "\u202eevil\U000e0041",
    "large": "x" * 100_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_breaks_a_line(tmp_path: Path, text: str) -> None:
    line = line_of(record(tool=text, arguments={text: [text]}, reason=text))
    assert line.count(b"\n") == 1 and line.endswith(b"\n") and line.isascii()
    assert not any(byte < 32 for byte in line[:-1])
    read = json.loads(line)
    assert read["tool"] == text and read["arguments"] == {text: [text]}
    written(tmp_path / "audit.jsonl", record(tool=text))
    assert [one["tool"] for one in query(tmp_path / "audit.jsonl")] == [text]


def test_a_line_holds_what_is_known_and_nothing_else() -> None:
    line = json.loads(line_of(record()))
    assert line.pop("hash") and line == {
        "time": "1970-01-12T13:46:40.000000Z", "phase": "intent", "call_id": "c1", "tool": "t", "subject": "me",
    }  # fmt: skip
    assert json.loads(line_of(record(elapsed_ms=0, dry_run=True))).keys() >= {"elapsed_ms", "dry_run"}


def test_the_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    written(tmp_path / "new" / "audit.jsonl", record())
    assert stat.S_IMODE((tmp_path / "new" / "audit.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def _as_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("")
    path.symlink_to(path.parent / "elsewhere")


BAD_PLACES = {
    "symlink": _as_link,
    "dangling symlink": lambda path: path.symlink_to(path.parent / "absent"),
    "directory": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7)),
    "file as folder": lambda path: None,
}


@pytest.mark.parametrize("make", BAD_PLACES.values(), ids=BAD_PLACES)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "audit.jsonl"
    try:
        make(path)
    except PermissionError:
        pytest.skip("device nodes can't be made here")
    if not (path.exists() or path.is_symlink()):
        path.write_text("")
        path = path / "below"
    log = AuditLog(path)
    with pytest.raises(OSError):
        log.append_now(record())
    assert log.error
    with pytest.raises(OSError):
        list(query(path)) or path.stat()


def test_an_open_pipe_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            AuditLog(path).append_now(record())
        with pytest.raises(OSError, match="not a regular file"):
            list(query(path))
    finally:
        os.close(reader)


def test_a_log_that_is_moved_or_removed_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.append_now(record("a"))
    path.rename(tmp_path / "audit.jsonl.1")
    log.append_now(record("b"))
    path.unlink()
    log.append_now(record("c"))
    log.close()
    assert [one["call_id"] for one in query(path)] == ["c"]
    assert [one["call_id"] for one in query(tmp_path / "audit.jsonl.1")] == ["a"]


@pytest.mark.parametrize(
    "torn", [b'{"after":"00', b"\0" * 5000, b"a\n\0b\n", b"\n"], ids=["half", "zeros", "lines", "empty"]
)
def test_what_a_crash_cut_off_stays_and_is_marked(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, record("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    written(path, record("c"))
    assert path.read_bytes().startswith(whole + torn)
    found = [one for one in query(path) if "unreadable" not in one]
    assert [(one["n"], one["tool"]) for one in found] == [(3, "t"), (2, "torn"), (1, "t")]
    assert [one["after"] for one in found[:2]] == [one["hash"] for one in found[1:]]
    body = torn.removesuffix(b"\n")
    assert found[1]["arguments"] == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


FULL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from systemmanager.audit.log import AuditLog
from systemmanager.audit.record import Record

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])

def one(id):
    return Record("intent", id, "t", "me", arguments={"x": "y" * 300}, time=1.0)

async def main():
    log = AuditLog(path)
    await log.append([one("a")], durable=True)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    for id in ("b", "c"):
        try:
            await log.append([one(id)], durable=True)
        except OSError as error:
            print("failed", id, log.error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await log.append([one("d")], durable=True)
    print("error", log.error)

asyncio.run(main())
"""


def test_a_full_disk_is_an_error_until_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["failed b File too large", "failed c File too large", "error None"]
    ids = [one.get("call_id") for one in query(path)]
    assert ids[0] == "d" and ids[-1] == "a" and set(ids[1:-1]) <= {None}, "no half line spoils the next"


def test_a_file_size_limit_is_not_left_behind() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_durable_records_that_come_together_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = os.fdatasync

    def counting(descriptor: int) -> None:
        syncs.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counting)

    async def work() -> None:
        log = AuditLog(tmp_path / "audit.jsonl")
        await asyncio.gather(*(log.append([record(f"c{number}")], durable=True) for number in range(200)))
        log.close()

    run(work())
    size = (tmp_path / "audit.jsonl").stat().st_size
    assert 1 <= len(syncs) <= 3 and syncs[-1] == size, "every record is covered, by few syncs"


def test_no_append_returns_before_a_sync_that_began_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, covered, go_on = tmp_path / "audit.jsonl", [0], threading.Event()
    real = os.fdatasync

    def slow(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        go_on.wait(10)
        real(descriptor)
        covered.append(size)

    monkeypatch.setattr(os, "fdatasync", slow)

    async def work() -> None:
        log = AuditLog(path)

        async def one(id: str) -> None:
            task = asyncio.ensure_future(log.append([record(id)], durable=True))
            await asyncio.sleep(0)
            size = path.stat().st_size
            await task
            assert covered[-1] >= size

        first = asyncio.create_task(one("a"))
        while log._syncing is None:
            await asyncio.sleep(0)
        second = asyncio.create_task(one("b"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, second)
        log.close()

    run(work())
    assert len(covered) == 3


def test_a_sync_that_fails_fails_the_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async def work() -> None:
        log = AuditLog(tmp_path / "audit.jsonl")
        monkeypatch.setattr(os, "fdatasync", failing)
        results = await asyncio.gather(
            *(log.append([record()], durable=True) for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(result, OSError) for result in results) and log.error == "Input/output error"
        await log.append([record()], durable=False)
        monkeypatch.undo()
        await log.append([record()], durable=True)
        assert log.error is None
        log.close()

    run(work())


# --- Reading back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 64, 1000, 65536])
def test_reading_backwards_finds_every_line_across_blocks(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "BLOCK", block)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(line_of(record(f"c{number}", reason="x" * (number % 97))) for number in range(300)))
    assert [one["call_id"] for one in query(path)] == [f"c{number}" for number in reversed(range(300))]


def test_lines_that_are_no_records_are_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = [
        b"",
        b"no json",
        b"\xff\xfe\x00",
        b"[1]",
        b"1",
        b"[" * 100_000,
        b'{"a":1',
        line_of(record("ok")).strip(),
        b"",
    ]
    path.write_bytes(b"\n".join(lines))
    found = list(query(path))
    assert [one.get("call_id") for one in found] == ["ok", *[None] * 6]
    assert all(len(one["unreadable"]) <= 200 for one in found[1:])


def test_a_line_without_end_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line_of(record("a")) + b"x" * (8 * 1024 * 1024) + b"\n" + line_of(record("b")))
    found = list(query(path))
    assert [one.get("call_id") for one in found] == ["b", None, "a"]


def test_no_log_has_no_records(tmp_path: Path) -> None:
    assert list(query(tmp_path / "absent")) == []
    (tmp_path / "empty").touch()
    assert list(query(tmp_path / "empty")) == []


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["d", "c", "b", "a"]),
    ({"call_id": "b"}, ["b"]),
    ({"tool": "look"}, ["c", "a"]),
    ({"tool": "look", "target": "web"}, ["a"]),
    ({"tool": "loo"}, []),
    ({"subject": "me"}, ["d", "c", "b", "a"]),
    ({"phase": "outcome"}, []),
    ({"since": "1970-01-01T00:00:03"}, ["d", "c"]),
    ({"since": "1970-01-01T01:00:03+01:00"}, ["d", "c"]),
    ({"since": "1970-01-01"}, ["d", "c", "b", "a"]),
    ({"since": "2999-01-01"}, []),
    ({"target": 'quote"d'}, ["d"]),
]


@pytest.mark.parametrize(("filters", "ids"), FILTERS, ids=str)
def test_queries(tmp_path: Path, filters: dict[str, Any], ids: list[str]) -> None:
    path = tmp_path / "audit.jsonl"
    written(
        path,
        record("a", tool="look", target="web", time=1),
        record("b", tool="change", target="web", time=2),
        record("c", tool="look", target="db", time=3),
        record("d", tool="x", target='quote"d', time=4),
    )
    assert [one["call_id"] for one in query(path, **filters)] == ids


def test_a_clock_that_was_set_back_hides_no_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, record("late", time=100), *(record(f"early-{number}", time=50) for number in range(20)))
    assert [one["call_id"] for one in query(path, since="1970-01-01T00:01:30")] == ["late"]


@pytest.mark.parametrize("since", ["yesterday", "", "2026-13-01", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_can_t_be_read_is_said(tmp_path: Path, since: str) -> None:
    with pytest.raises(InvalidArguments):
        list(query(tmp_path / "absent", since=since))
