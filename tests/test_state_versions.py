"""State outlives upgrades and roll-backs: what a newer gateway wrote is refused, clearly, and left alone."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from systemmanager import journal
from systemmanager.approvals.store import ApprovalStore
from systemmanager.audit import chain
from systemmanager.audit.log import AuditLog
from systemmanager.audit.reading import newest_format
from systemmanager.audit.record import FORMAT, Record
from systemmanager.audit.signing import Keys, Signer, new_key
from systemmanager.audit.verify import Broken, verify
from systemmanager.errors import ConfigError
from systemmanager.freezing import NAME, NEWER, NOTHING, VERSION, change, read
from systemmanager.jobs import store
from systemmanager.plans.store import PlanStore
from systemmanager.server import app
from systemmanager.server.app import approvals_of
from systemmanager.server.auth.modes import ledger_of
from systemmanager.settings import prepare_state
from systemmanager.settings import read as read_settings
from systemmanager.statefile import StateFile


def written(path: Path, signer: Signer | None) -> None:
    log = AuditLog(path, signer=signer)
    asyncio.run(log.append([Record("event", "", "start", "gateway", time=1.0)], durable=True))
    log.close()


def test_each_checkpoint_names_the_logs_format(tmp_path: Path) -> None:
    written(tmp_path / "log", Signer.of(new_key()))
    assert newest_format(tmp_path / "log") == FORMAT
    first = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert first["arguments"]["format"] == FORMAT


def test_a_log_without_a_format_is_of_the_first(tmp_path: Path) -> None:
    written(tmp_path / "log", None)
    assert newest_format(tmp_path / "log") == 1 == newest_format(tmp_path / "absent")


def test_a_log_of_a_newer_gateway_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings({"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state")})
    state, signer = prepare_state(settings), Signer.of(new_key())
    written(state.audit_log, signer)
    journal.audit_log(settings, state).close()
    with monkeypatch.context() as newer:
        newer.setattr(chain, "FORMAT", FORMAT + 1)
        written(state.audit_log, signer)
    before = state.audit_log.read_bytes()
    with pytest.raises(ConfigError, match="newer version of the gateway, and left alone"):
        journal.audit_log(settings, state)
    with pytest.raises(Broken, match="newer version of the gateway: verify it with that"):
        verify(state.audit_log, Keys(signer.public))
    assert state.audit_log.read_bytes() == before


@pytest.mark.parametrize(("name", "open_"), [("approvals.sqlite", approvals_of), ("tokens.sqlite", ledger_of)])
def test_a_database_of_a_newer_gateway_is_refused_and_left_alone(tmp_path: Path, name: str, open_: Any) -> None:
    state = prepare_state(read_settings({"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state")}))
    open_(state)
    path = state.folder / name
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    before = path.read_bytes()
    with pytest.raises((ConfigError, sqlite3.Error, OSError), match="newer version of the gateway"):
        open_(state)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "store", "remedy"),
    [
        ("jobs", store.JobStore, "look at its targets first"),
        ("plans", PlanStore, "every plan has to be made anew"),
        ("approvals", ApprovalStore, "every approval has to be asked for anew"),
    ],
)
@pytest.mark.parametrize("how", ["another file", "torn"])
def test_a_broken_database_is_named_with_what_to_do(
    tmp_path: Path, name: str, store: Any, remedy: str, how: str
) -> None:
    state = prepare_state(read_settings({"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state")}))
    path = state.folder / f"{name}.sqlite"
    store(path)
    whole = path.read_bytes()
    path.write_bytes(b"x" * 3000 if how == "another file" else whole[:100] + b"\xff" * 3000 + whole[3100:])
    before = path.read_bytes()
    with pytest.raises(ConfigError) as raised:
        app._stored(state, name, store)
    said = raised.value.message
    assert str(path) in said and "put it back from a backup, or move it away: " in said and remedy in said
    assert path.read_bytes() == before


def test_jobs_of_an_older_gateway_are_taken_over_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with StateFile(path, (store._FIRST,)).transaction() as database:
        database.execute(
            "INSERT INTO job VALUES ('a', 'ann', 'pull_docker_image', '{}', '[\"web\"]', 'd', NULL, '{}', 'o', 'done', "
            "10.0, 12.0, 1, '', 0)"
        )
    for _ in range(2):
        row = store.JobStore(path).one("a")
        assert row is not None and (row.targets, row.started, row.ended, row.changed) == (("web",), 10.0, 12.0, 12.0)


def test_a_freeze_of_a_newer_gateway_freezes_all_until_somebody_says_otherwise(tmp_path: Path) -> None:
    change(tmp_path, "ann", freeze=True, targets=(), all=False, writes=True, egress=False)
    path = tmp_path / NAME
    assert json.loads(path.read_text())["version"] == VERSION and not read(path).all
    path.write_text(path.read_text().replace(f'"version": {VERSION}', f'"version": {VERSION + 1}'))
    assert read(path) is NEWER and NEWER.all and "newer version" in NEWER.by
    change(tmp_path, "ann", freeze=False, targets=(), all=True, writes=False, egress=False)
    assert read(path) == NOTHING
