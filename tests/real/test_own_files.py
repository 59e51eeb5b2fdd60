"""The gateway's own files stay closed to file tools: on its own machine, over SSH to itself, and after a reload."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from systemmanager.executors.own_files import OwnFiles
from systemmanager.server import app
from systemmanager.server.own_files import of_gateway, of_targets
from systemmanager.settings import Settings, State, read
from tests.real.openssh import SshServer
from tests.support import OPERATOR, registry, run, target

SECRET = "SECRET-0123456789-abcdef"


def test_a_file_is_own_with_its_segments_and_backups_but_not_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    own = OwnFiles(tmp_path / "state", tmp_path / "audit.jsonl", tmp_path / "key")
    for name in ("state", "state/x/y", "audit.jsonl", "audit.jsonl.1", "audit-000000000007.jsonl", "key", "key.pub"):
        assert own.holds(str(tmp_path / name)), name
    for name in ("", "state-of-mind", "audit.log", "audit", "auditor.jsonl", "other/key", "audit-2.txt", "ke"):
        assert not own.holds(str(tmp_path / name).rstrip("/")), name


def test_a_link_to_an_own_file_leads_to_an_own_file(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    own = OwnFiles(tmp_path / "link")
    assert own.holds(str(tmp_path / "link")) and own.holds(str(tmp_path / "real"))


def test_a_hard_link_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "state" / "deep").mkdir(parents=True)
    (tmp_path / "state" / "deep" / "key").write_text("x")
    os.link(tmp_path / "state" / "deep" / "key", tmp_path / "other")
    (tmp_path / "third").write_text("x")
    own = OwnFiles(tmp_path / "state")
    assert own.is_one((tmp_path / "other").stat()) and not own.is_one((tmp_path / "third").stat())


def test_every_path_of_the_settings_and_every_key_is_the_gateways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    paths = {name: tmp_path / name for name, field in Settings.model_fields.items() if "Path" in str(field.annotation)}
    assert {"targets_config", "audit_log", "state_dir"} <= paths.keys()
    given = Settings.model_construct(None, **paths)
    state = State(tmp_path / "s", tmp_path / "log", tmp_path / "r", tmp_path / "k")
    assert {*paths.values(), tmp_path / "s", tmp_path / "log", tmp_path / "credentials"} <= {*of_gateway(given, state)}
    known = registry(
        target("a", "ssh", connection={"host": "h", "username": "me", "key_path": "/keys/a"}),
        target("b", "ssh", connection={"host": "h", "username": "me", "key_path": "-----BEGIN X-----\nabc"}),
        target("c", "docker", connection={"host": "tcp://10.0.0.6:2376", "cert_path": "/keys/c"}),
        target("d", "local"),
    )
    assert {*of_targets(known)} == {Path("/keys/a"), Path("/keys/c")}


class Place:
    """A gateway with everything that it owns below one folder that its targets may read."""

    def __init__(self, folder: Path, server: SshServer | None) -> None:
        self.folder, self.targets = folder, folder / "etc" / "targets.yaml"
        for name in ("etc", "keys", "logs"):
            (folder / name).mkdir()
        for name in ("one", "two"):
            (folder / "keys" / name).write_text(SECRET)
        (folder / "logs" / "app.log").write_text("fine\n")
        self.server = server
        self.write("one")

    def write(self, key: str) -> None:
        constraints = {"paths": [str(self.folder)]}
        capabilities = ["file:read"]
        targets: dict[str, Any] = {
            "local": {"executor": "local", "capabilities": capabilities, "constraints": constraints},
            "other": {
                "executor": "ssh",
                "connection": {"host": "h", "username": "me", "key_path": str(self.folder / "keys" / key)},
                "capabilities": capabilities,
            },
        }
        if self.server is not None:
            made = self.server.target()
            targets["self"] = {
                "executor": "ssh",
                "connection": made.connection.model_dump(mode="json", exclude_none=True),
                "capabilities": capabilities,
                "constraints": constraints,
            }
        document = {"version": "1.0", "targets": {id: {"id": id, **body} for id, body in targets.items()}}
        self.targets.write_text(json.dumps(document))

    @property
    def settings(self) -> Settings:
        return read(
            {
                "SYSTEMMANAGER_TARGETS_CONFIG": str(self.targets),
                "SYSTEMMANAGER_AUDIT_LOG": str(self.folder / "logs" / "audit.jsonl"),
                "SYSTEMMANAGER_STATE_DIR": str(self.folder / "state"),
            }
        )

    def reads(self, on: str, *names: str, reload: str | None = None) -> list[str]:
        """The code of the error of each read, or "read"."""

        async def work() -> list[str]:
            async with app.running(self.settings) as running:
                running.state.secrets(self.settings)
                if reload is not None:
                    self.write(reload)
                    await running.reload()
                return [await one(running, name) for name in names]

        async def one(running: app.Running, name: str) -> str:
            arguments = {"action": "read", "path": str(self.folder / name), "target": on}
            reply = (await running.gateway.call(OPERATOR, "file_operations", arguments)).as_dict()
            assert SECRET not in str(reply)
            result = reply["results"][0]
            return "read" if result["ok"] else str(result["error"]["code"])

        return run(work())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "all").mkdir()
    return Place(tmp_path / "all", None)


OWN = ("state/shared_secret", "logs/audit.jsonl", "etc/targets.yaml", "keys/one")


def test_nothing_of_the_gateway_is_read_on_its_own_machine(place: Place) -> None:
    os.link(place.folder / "keys" / "one", place.folder / "logs" / "second-name")
    (place.folder / "logs" / "link").symlink_to("../keys/one")
    assert place.reads("local", *OWN) == ["path_outside"] * len(OWN)
    assert place.reads("local", "logs/second-name", "logs/link", "logs/app.log") == [
        "path_outside", "path_outside", "read",
    ]  # fmt: skip


def test_a_key_stays_closed_when_a_reload_brings_or_drops_it(place: Place) -> None:
    assert place.reads("local", "keys/one", "keys/two", reload="two") == ["path_outside", "path_outside"]


@pytest.fixture
def itself(tmp_path: Path, ssh_server: SshServer) -> Iterator[Place]:
    (tmp_path / "all").mkdir()
    yield Place(tmp_path / "all", ssh_server)


@pytest.mark.ssh
def test_nothing_of_the_gateway_is_read_over_ssh_to_itself(itself: Place) -> None:
    os.link(itself.folder / "keys" / "one", itself.folder / "logs" / "second-name")
    found = itself.reads("self", *OWN, "logs/second-name", "logs/app.log")
    assert found == ["path_outside"] * (len(OWN) + 1) + ["read"]
