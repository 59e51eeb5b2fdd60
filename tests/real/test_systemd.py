"""Units of a machine that systemd has booted: over SSH as root, as a user who may sudo, and from its own gateway."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.machine import USER, Machine
from tests.real.openssh import until
from tests.support import call


def ask(tmp_path: Path, machine: Machine, tool: str, user: str = "root", **arguments: Any) -> dict[str, Any]:
    constraints = {"sudo_policy": "none" if user == "root" else "limited", "units": ["sm-*"]}
    one = machine.target("box", connection={"username": user}, constraints=constraints)
    (result,) = call(tmp_path, tool, {"target": "box", **arguments}, one)["results"]
    return dict(result)


def manage(tmp_path: Path, machine: Machine, action: str, unit: str, user: str = "root") -> dict[str, Any]:
    return ask(tmp_path, machine, "manage_service", user, action=action, service_name=unit)


@pytest.fixture
def steady(machine: Machine) -> Iterator[str]:
    machine.ssh("systemctl start sm-steady")
    yield "sm-steady.service"
    machine.ssh("systemctl disable --quiet --now sm-steady")


def test_a_running_unit_is_described_as_systemd_knows_it(tmp_path: Path, machine: Machine, steady: str) -> None:
    data = ask(tmp_path, machine, "get_service_status", service_name="sm-steady")["data"]
    assert (data["unit"], data["active"], data["sub"], data["load"]) == (steady, "active", "running", "loaded")
    assert str(data["main_pid"]) == machine.ssh("systemctl show -P MainPID sm-steady").strip()
    assert data["description"] == "A steady one" and data["enabled"] == "disabled"
    assert data["file"] == "/usr/local/lib/systemd/system/sm-steady.service"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", data["since"])
    assert not data.keys() & {"result", "exit_status", "signal", "journal"}


@pytest.mark.parametrize("user", ["root", USER])
def test_a_failed_unit_comes_with_its_last_words(tmp_path: Path, machine: Machine, user: str) -> None:
    machine.ssh("systemctl start sm-broken")
    data = ask(tmp_path, machine, "get_service_status", user, service_name="sm-broken")["data"]
    assert (data["active"], data["result"], data["exit_status"]) == ("failed", "exit-code", 7)
    said = "\n".join(data.get("journal", []))
    assert ("the disk is gone" in said and "giving up" in said) or user != "root", "a user may not read the journal"


def test_the_root_cause_of_a_failed_unit_is_read_from_its_journal(tmp_path: Path, machine: Machine) -> None:
    machine.ssh("systemctl restart sm-full || true")
    data = ask(tmp_path, machine, "analyze_container_logs", name_or_id="unit:sm-full")["data"]
    assert (data["source"], data["root_cause"]["cause"]) == ("sm-full.service", "disk_full"), data
    assert data["root_cause"]["lines"] and data["errors"][0]["lines"] and data["errors"][0]["first_seen"], data
    assert data["state"]["exit_code"] == 7, data["state"]
    missing = ask(tmp_path, machine, "analyze_container_logs", name_or_id="unit:sm-none")
    assert missing["error"]["code"] == "not_found", missing
    machine.ssh("systemctl restart sm-steady")
    well = ask(tmp_path, machine, "analyze_container_logs", name_or_id="unit:sm-steady")["data"]
    assert "root_cause" not in well, well
    machine.ssh("systemctl stop sm-steady")


def test_a_signal_is_told_from_an_exit_status(tmp_path: Path, machine: Machine) -> None:
    machine.ssh("systemctl start sm-killed")
    data = ask(tmp_path, machine, "get_service_status", service_name="sm-killed")["data"]
    assert (data["result"], data["signal"]) == ("signal", 9) and "exit_status" not in data


def test_an_unknown_unit_is_named_with_what_is_near(tmp_path: Path, machine: Machine) -> None:
    error = ask(tmp_path, machine, "get_service_status", service_name="sm-steedy")["error"]
    assert error["code"] == "not_found" and "sm-steady" in error["hint"]


@pytest.mark.parametrize("user", ["root", USER])
def test_a_unit_is_restarted_stopped_started_and_enabled(
    tmp_path: Path, machine: Machine, steady: str, user: str
) -> None:
    before = ask(tmp_path, machine, "get_service_status", service_name=steady)["data"]["main_pid"]
    after = manage(tmp_path, machine, "restart", "sm-steady", user)["data"]
    assert after["active"] == "active" and after["main_pid"] != before
    assert manage(tmp_path, machine, "stop", steady, user)["data"]["active"] == "inactive"
    assert machine.ssh("systemctl is-active sm-steady").strip() == "inactive"
    assert manage(tmp_path, machine, "start", steady, user)["data"]["active"] == "active"
    assert manage(tmp_path, machine, "enable", steady, user)["data"]["enabled"] == "enabled"
    assert machine.ssh("systemctl is-enabled sm-steady").strip() == "enabled"
    assert manage(tmp_path, machine, "disable", steady, user)["data"]["enabled"] == "disabled"
    assert machine.ssh("systemctl is-active sm-steady").strip() == "active", "disabling stops nothing"


def test_a_unit_that_does_not_start_says_why(tmp_path: Path, machine: Machine) -> None:
    error = manage(tmp_path, machine, "start", "sm-broken")["error"]
    assert error["code"] == "command_failed"
    assert "the disk is gone" in json.dumps(error), error


@pytest.mark.parametrize(("unit", "state"), [("sm-short", "failed"), ("sm-looping", "")])
@pytest.mark.parametrize("action", ["start", "restart"])
def test_a_unit_that_starts_and_then_breaks_is_an_error(
    tmp_path: Path, machine: Machine, unit: str, state: str, action: str
) -> None:
    try:
        error = manage(tmp_path, machine, action, unit)["error"]
    finally:
        machine.ssh(f"systemctl stop {unit}; systemctl reset-failed {unit}")
    assert error["code"] == "command_failed" and "did not stay up" in error["message"], error
    assert state in error["message"] and "status=9" in json.dumps(error["details"]["journal"])
    assert state == "" or "no database" in json.dumps(error["details"]["journal"])


def test_a_unit_outside_of_the_constraints_is_left_alone(tmp_path: Path, machine: Machine) -> None:
    before = machine.ssh("systemctl show -P MainPID dbus")
    assert manage(tmp_path, machine, "restart", "dbus.service")["error"]["code"] == "unit_not_allowed"
    assert machine.ssh("systemctl show -P MainPID dbus") == before


def test_without_a_sudo_policy_a_user_changes_nothing(tmp_path: Path, machine: Machine, steady: str) -> None:
    one = machine.target("box", connection={"username": USER}, constraints={"sudo_policy": "none"})
    asked = {"target": "box", "action": "stop", "service_name": "sm-steady"}
    (result,) = call(tmp_path, "manage_service", asked, one)["results"]
    assert result["error"]["code"] == "privilege_required"
    assert machine.ssh("systemctl is-active sm-steady").strip() == "active"


def test_a_stop_that_hangs_ends_at_the_deadline_and_nothing_of_ours_stays(tmp_path: Path, machine: Machine) -> None:
    machine.ssh("systemctl start sm-stubborn")
    try:
        one = machine.target("box", constraints={"timeout": 2})
        asked = {"target": "box", "action": "stop", "service_name": "sm-stubborn"}
        (result,) = call(tmp_path, "manage_service", asked, one)["results"]
        assert result["error"]["code"] == "deadline_exceeded"
        until(lambda: "stop -- sm-stubborn" not in machine.ssh("ps -e -o args"), "systemctl ends, too")
    finally:
        machine.ssh("systemctl kill --signal=KILL sm-stubborn")


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("get_service_status", "service_name=sm-steady"),
        ("manage_service", "action=restart service_name=sm-steady"),
        ("get_system_status", ""),
        ("audit_security", "targets=local"),
    ],
)
def test_a_gateway_on_the_machine_itself_answers_for_it(machine: Machine, steady: str, tool: str, words: str) -> None:
    targets = """version: "1.0"
targets:
  local: {id: local, executor: local, capabilities: [admin]}
"""
    path = ":".join(shlex.quote(folder) for folder in sys.path if folder)
    settings = "SYSTEMMANAGER_STATE_DIR=/run/gateway SYSTEMMANAGER_TARGETS_CONFIG=/run/targets.yaml"
    program = f"{settings} PYTHONPATH={path} {sys.executable} -m systemmanager call {tool} {words} --json --yes"
    said = machine.ssh(f"printf %s {shlex.quote(targets)} >/run/targets.yaml; {program}")
    (result,) = json.loads(said)["results"]
    assert result["ok"], result
    if "service" in tool:
        assert result["data"]["active"] == "active" and result["data"]["unit"] == steady
