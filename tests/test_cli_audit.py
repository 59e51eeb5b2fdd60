"""`systemmanager audit`: what an operator proves with it, through the real command line."""

import json
from pathlib import Path

import pytest

from tests.test_cli import systemmanager


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gateway that has done something, and its log with the witness beside it."""
    for name in ("a", "b"):
        settings = {"SYSTEMMANAGER_AUDIT_WITNESS": str(tmp_path / "witness")}
        systemmanager(tmp_path, "token", "mint", "--agent", name, settings=settings)
    return tmp_path


def log_of(folder: Path) -> Path:
    return folder / "state/systemmanager/audit.jsonl"


def test_a_whole_log_is_said_to_be_whole(folder: Path) -> None:
    assert systemmanager(folder, "audit", "verify").stdout.startswith("whole: ")
    witness = str(folder / "witness")
    done = json.loads(systemmanager(folder, "audit", "verify", "--witness", witness, "--json").stdout)
    assert done["ok"] and done["records"] == done["last"] == 6 and done["witnessed"] == 2 and done["unsigned"] == 0


def test_the_first_bad_line_is_named_and_the_exit_status_is_1(folder: Path) -> None:
    log = log_of(folder)
    whole = log.read_text()
    log.write_text(whole.replace('"agent":"a"', '"agent":"c"'))
    done = systemmanager(folder, "audit", "verify", check=1)
    assert done.stdout.startswith("audit.jsonl:2: this record was changed")
    assert json.loads(systemmanager(folder, "audit", "verify", "--json", check=1).stdout)["line"] == 2
    log.write_text("".join(whole.splitlines(keepends=True)[:-2]))
    systemmanager(folder, "audit", "verify")
    cut = systemmanager(folder, "audit", "verify", "--witness", str(folder / "witness"), check=1)
    assert "tail was cut off" in cut.stdout
    log.unlink()
    assert "can't be read" in systemmanager(folder, "audit", "verify", check=1).stderr


def test_a_copy_elsewhere_is_checked_with_the_public_key_alone(folder: Path) -> None:
    key, other = folder / "key.pem", folder / "other"
    key.write_text(systemmanager(folder, "audit", "key").stdout)
    assert "BEGIN PUBLIC KEY" in key.read_text()
    (folder / "audit.jsonl").write_bytes(log_of(folder).read_bytes())
    other.mkdir()
    copy = str(folder / "audit.jsonl")
    assert "whole" in systemmanager(other, "audit", "verify", copy, "--key", str(key)).stdout
    assert not (other / "state").exists()
    assert "not the log's" in systemmanager(other, "audit", "verify", copy, check=1).stdout
    (folder / "none.pem").write_text("nothing")
    done = systemmanager(other, "audit", "verify", copy, "--key", str(folder / "none.pem"), check=1)
    assert "is no public key" in done.stderr


def test_an_unknown_phase_is_an_error_that_names_them(folder: Path) -> None:
    done = systemmanager(folder, "audit", "query", "--phase", "bogus", check=1)
    assert "bogus" in done.stderr and "intent, outcome, refused, event, checkpoint" in done.stderr
    assert len(systemmanager(folder, "audit", "query", "--phase", "event").stdout.splitlines()) == 2


def test_the_key_is_for_its_owner_alone(folder: Path) -> None:
    key = folder / "state/systemmanager/audit_key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert "open to other users" in systemmanager(folder, "token", "mint", "--agent", "c", check=1).stderr
