"""A disk that is full or read-only: what needs the log says so at once, and goes on by itself when the disk does."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from systemmanager.audit.verify import verify
from systemmanager.gateway import Gateway
from tests.conftest import need
from tests.support import OPERATOR, run
from tests.test_audit_verify import KEYS, log_at
from tests.test_journal import RESTART, Machine, gateway

AT_ONCE, AGAIN = 1.0, 2.0


def mount(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(place))
    need("root", None if done.returncode == 0 else f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def on(disk: Path, machine: Machine) -> Gateway:
    one = gateway(disk, machine)
    one.journal.log = log_at(disk / "audit.jsonl", witness=None, clock=time.time)
    return one


def restart(one: Gateway) -> dict[str, Any]:
    begun = time.monotonic()
    with capture_logs():
        reply = run(one.call(OPERATOR, RESTART[0], {"target": "web-01", **RESTART[1]})).as_dict()
    assert time.monotonic() - begun < AT_ONCE
    return reply


def goes_on(one: Gateway) -> None:
    """By itself: its health within two seconds, and the next call."""

    async def tend() -> None:
        await one.journal.tend()

    with capture_logs():
        run(tend())
    assert "audit" not in one.degraded
    assert "error" not in restart(one)
    one.journal.log.close()


def test_a_full_disk(disk: Path) -> None:
    machine = Machine(disk / "audit.jsonl")
    one = on(disk, machine)
    assert "error" not in restart(one)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass
    seen = 0
    for _ in range(200):  # what is left of the log's last page
        seen, reply = len(machine.seen), restart(one)
        if "error" in reply:
            break
    assert reply["error"]["code"] == "audit_unavailable" and len(machine.seen) == seen, "nothing ran"
    health = run(one.call(OPERATOR, "health_check", {})).as_dict()["results"][0]["data"]
    assert "No space left" in health["problems"]["audit"]
    filler.unlink()
    goes_on(one)
    tools = [line for line in (disk / "audit.jsonl").read_text().splitlines() if "audit resumed" in line]
    assert len(tools) == 1
    verify(disk / "audit.jsonl", KEYS)


def test_a_read_only_disk(disk: Path) -> None:
    machine = Machine(disk / "audit.jsonl")
    one = on(disk, machine)
    assert "error" not in restart(one)
    one.journal.log.close()  # the kernel takes no disk away that is open for writing, but for an error of its own
    assert mount("-o", "remount,ro", str(disk)).returncode == 0
    seen = len(machine.seen)
    reply = restart(one)
    assert reply["error"]["code"] == "audit_unavailable" and "Read-only" in one.degraded["audit"]
    assert len(machine.seen) == seen
    assert mount("-o", "remount,rw", str(disk)).returncode == 0
    goes_on(one)
    verify(disk / "audit.jsonl", KEYS)


def test_what_is_put_in_the_way_of_an_open_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    machine = Machine(path)
    one = on(tmp_path, machine)
    assert "error" not in restart(one)
    kept = tmp_path / "kept"
    for put in ("link", "pipe", "folder"):
        path.rename(kept)
        if put == "link":
            path.symlink_to(tmp_path / "elsewhere")
        else:
            os.mkfifo(path) if put == "pipe" else path.mkdir()
        seen = len(machine.seen)
        assert restart(one)["error"]["code"] == "audit_unavailable" and len(machine.seen) == seen
        path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)
        goes_on(one)
    assert not (tmp_path / "elsewhere").exists()
    verify(path, KEYS)
