"""One chain written by several processes, what a crash leaves, and what is on the disk when an effect begins."""

import asyncio
import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from systemmanager.audit import log as log_module
from systemmanager.audit.chain import Limits
from systemmanager.audit.log import AuditLog, NotDurable
from systemmanager.audit.reading import query
from systemmanager.audit.record import PHASES
from systemmanager.audit.segments import closed, name_of
from systemmanager.audit.verify import verify
from systemmanager.errors import InvalidArguments, NameNotResolved
from systemmanager.journal import Journal
from systemmanager.ports import Output
from systemmanager.server import app
from systemmanager.settings import Settings
from tests.support import run
from tests.test_audit_verify import KEYS, SIGNER, log_at, made, record
from tests.test_journal import RESTART, Machine, call, gateway

WRITER = """
import sys
from pathlib import Path
from systemmanager.audit.chain import Limits
from systemmanager.audit.log import AuditLog
from systemmanager.audit.record import Record
from systemmanager.audit.signing import Signer

path, name = Path(sys.argv[1]), sys.argv[2]
signer = Signer.of(path.with_name("key").read_text())
limits = Limits(segment_bytes=30_000, checkpoint_records=20)
log = AuditLog(path, signer=signer, witness=path.with_name("witness"), limits=limits)
print("ready", flush=True)
sys.stdin.readline()
for number in range(150):
    log.append_now(Record("event", f"{name}-{number}", "t", name, time=1000.0 + number))
log.close()
"""


def writer(path: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    (tmp_path / "key").write_text(private(SIGNER))
    writers = [writer(path, name) for name in "abcd"]
    for one in writers:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in writers:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in writers:
        one.communicate(timeout=60)
        assert one.returncode == 0
    found = verify(path, KEYS, witness=tmp_path / "witness")
    assert found.unsigned == 0 and found.segments > 2
    ids = [one["call_id"] for one in query(path)]
    assert sorted(ids) == sorted(f"{name}-{number}" for name in "abcd" for number in range(150))
    for name in "abcd":
        assert [id for id in reversed(ids) if id.startswith(name)] == [f"{name}-{number}" for number in range(150)]


def private(signer: Any) -> str:
    made: bytes = signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.decode()


def test_a_writer_that_stands_still_with_the_lock_stops_no_one_for_long(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = log_at(path)
    log.append_now(record(1))
    other = os.open(path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)

    async def work() -> None:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(OSError, match="another process"):
            await log.append([record(2)], durable=True)
        assert asyncio.get_running_loop().time() - begun < 1
        os.close(other)
        await log.append([record(3)], durable=True)

    run(work())
    log.close()
    verify(path, KEYS)


# --- What a crash leaves ----------------------------------------------------------------------------------------------


def crashed(path: Path) -> None:
    """A process that wrote intents and is gone without a word."""
    log = log_at(path)
    log.begin_run()
    dry = record(4, dry_run=True)
    log.append_now(record(1, target="a"), record(1, target="b"), record(2), dry, record(3))
    done = record(2)
    log.append_now(type(done)("outcome", "c2", "look", "me", code="ok", time=1002.0))
    assert log._run is not None and log._run._descriptor is not None
    os.close(log._run._descriptor)


def test_open_intents_of_a_process_that_is_gone_end_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    crashed(path)
    log = log_at(path)
    log.begin_run()
    assert log.close_ended() == 3 and log.close_ended() == 0
    log.close()
    ends = [(one["call_id"], one.get("target"), one["code"]) for one in query(path, phase="outcome")]
    assert ends == [("c3", None, "unknown"), ("c1", "b", "unknown"), ("c1", "a", "unknown"), ("c2", None, "ok")]
    verify(path, KEYS)


def test_the_next_start_of_the_gateway_closes_them(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    crashed(path)
    tmp_path.chmod(0o700)

    async def work() -> None:
        async with app.running(Settings.model_validate({"SYSTEMMANAGER_STATE_DIR": str(tmp_path)})):
            ends = [one["code"] for one in query(path, phase="outcome")]
            assert sorted(ends) == ["ok", "unknown", "unknown", "unknown"]

    with capture_logs():
        run(work())


def test_open_intents_of_a_process_that_lives_stay_open(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    living, second = log_at(path), log_at(path)
    living.begin_run()
    living.append_now(record(1))
    second.begin_run()
    assert second.close_ended() == 0
    second.close()
    living.close()
    assert [one["phase"] for one in query(path)] == ["intent"]
    third = log_at(path)
    assert third.close_ended() == 1, "it stopped in order, but with an open intent"
    third.close()


def test_a_search_for_open_intents_begins_where_the_last_checkpoint_left_none(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    async def work() -> None:
        log = log_at(path)
        log.begin_run()
        await log.append([record(1)], durable=True)
        await log.append([type(record(1))("outcome", "c1", "look", "me", time=1002.0)], durable=True)
        log._clock = lambda: 2000.0
        await log.tend()
        assert log._run is not None
        (file,) = (tmp_path / "audit.runs").iterdir()
        assert int(file.read_text()) == log._chain.place.n > 2
        log.close()

    run(work())
    assert not list((tmp_path / "audit.runs").iterdir())


# --- Power loss -------------------------------------------------------------------------------------------------------


class Disk:
    """Knows what of a file is on the disk: what stood in it when a sync began that has returned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.safe = b""
        self.fail = False

    def sync(self, descriptor: int) -> None:
        written = self.path.read_bytes()
        if self.fail:
            raise OSError(5, "Input/output error")
        self.safe = written


def test_every_intent_is_on_the_disk_before_its_effect(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    disk = Disk(path)

    async def call(log: AuditLog, number: int) -> None:
        await log.append([record(number)], durable=number % 3 > 0)
        if number % 3 > 0:
            assert f'"c{number}"'.encode() in disk.safe, "the effect would begin now"

    async def work() -> None:
        log = log_at(path, sync=disk.sync, limits=Limits(checkpoint_records=10))
        for first in range(0, 200, 20):
            await asyncio.gather(*(call(log, number) for number in range(first, first + 20)))

    run(work())
    # Of what was not on the disk any part may be there after the power came back.
    dice, whole = random.Random(4), path.read_bytes()
    rest = whole[len(disk.safe) :] or whole[-1000:]
    for torn in (b"", rest[: dice.randrange(len(rest))], b"\0" * 700, rest[:50] + b"\0" * 4096):
        path.write_bytes(disk.safe + torn)
        log = log_at(path, limits=Limits(checkpoint_records=10))
        log.append_now(record(1000))
        log.close()
        assert verify(path, KEYS).records > 200


@pytest.mark.parametrize(("tool", "arguments"), [RESTART, ("ping_host", {"host": "127.0.0.1"})], ids=["change", "read"])
def test_no_effect_of_a_call_begins_before_its_intent_is_on_the_disk(
    tmp_path: Path, tool: str, arguments: dict[str, Any]
) -> None:
    """Through the gateway: what it does with the log, and when."""
    disk, safe = Disk(tmp_path / "audit.jsonl"), list[bytes]()

    class Watched(Machine):
        async def run(self, *argv: str, **options: Any) -> Output:
            safe.append(disk.safe)
            return await super().run(*argv, **options)

        async def addresses(self, host: str) -> list[str]:
            safe.append(disk.safe)
            raise NameNotResolved(host)

    one = gateway(tmp_path, Watched(disk.path))
    one.journal.log.close()
    one.journal.log = log_at(disk.path, sync=disk.sync)
    reply = call(one, tool, arguments)
    assert safe and all(reply["call_id"].encode() in seen and b'"phase":"intent"' in seen for seen in safe)
    if tool == RESTART[0]:
        assert b'"phase":"outcome"' in disk.safe, "a change is answered when its outcome is there, too"
    one.journal.log.close()


def test_what_a_failed_sync_may_have_lost_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    disk, again = Disk(path), list[tuple[int, int]]()
    real: Callable[[int, int, int], None] = log_module._write_again

    def noting(descriptor: int, begin: int, end: int) -> None:
        again.append((begin, end))
        real(descriptor, begin, end)

    monkeypatch.setattr(log_module, "_write_again", noting)

    async def work() -> None:
        log = log_at(path, sync=disk.sync)
        await log.append([record(1)], durable=True)
        safe = len(disk.safe)
        disk.fail = True
        with pytest.raises(NotDurable):
            await log.append([record(2)], durable=True)
        disk.fail = False
        before = path.read_bytes()
        await log.append([record(3)], durable=True)
        assert again == [(safe, path.stat().st_size)] and path.read_bytes().startswith(before)
        await log.append([record(4)], durable=True)
        assert len(again) == 1
        log.close()

    run(work())
    verify(path, KEYS)


def test_the_last_record_of_a_cancelled_call_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    disk = Disk(path)

    async def work() -> None:
        journal = Journal(log_at(path, sync=disk.sync))

        async def call() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await journal._try(record(7), durable=True)

        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # once more, while it writes
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b'"c7"' in disk.safe
        journal.log.close()

    run(work())


# --- Reading across segments ------------------------------------------------------------------------------------------


def test_a_search_goes_through_all_segments(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = log_at(path)
    for number in range(100):
        log.append_now(record(number))
    log.close()
    assert len(closed(path)) > 3
    assert [one["call_id"] for one in query(path)] == [f"c{number}" for number in reversed(range(100))]
    assert len(list(query(path, call_id="c3"))) == 1
    assert {one["phase"] for one in query(path, phase="checkpoint")} == {"checkpoint"}


def test_a_gateway_that_ended_between_two_segments_goes_on_with_the_chain(tmp_path: Path) -> None:
    """A segment is closed, and before anything stands in the next one the process is gone."""
    path = made(tmp_path, limits=Limits(checkpoint_records=10))
    before = verify(path, KEYS, witness=tmp_path / "witness")
    for first in (1, before.last + 1):
        path.rename(name_of(path, first))
        log = log_at(path)
        log.append_now(record(1000 + first))
        log.close()
    after = verify(path, KEYS, witness=tmp_path / "witness")
    assert after.segments == before.segments + 2 and after.last > before.last + 1


def test_an_old_segment_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, signer=SIGNER, clock=lambda: 1000.0, limits=Limits(segment_seconds=50))
    for number in range(0, 200, 20):
        log.append_now(record(number))
    log.close()
    assert len(closed(path)) == 3
    verify(path, KEYS)


def test_an_unknown_phase_is_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidArguments) as caught:
        list(query(tmp_path / "audit.jsonl", phase="bogus"))
    assert all(phase in str(caught.value.hint) for phase in PHASES)
