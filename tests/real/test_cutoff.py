"""Changes that may cut the gateway off, on a machine that is really reached by its sshd."""

from pathlib import Path
from typing import Any

import pytest

from systemmanager.operations import cutoff
from tests.real.machine import USER, Machine
from tests.real.openssh import until
from tests.support import call


def manage(tmp_path: Path, machine: Machine, action: str, unit: str, user: str = "root") -> dict[str, Any]:
    limits = {"units": ["*"], "sudo_policy": "none" if user == "root" else "limited"}
    one = machine.target("box", connection={"username": user}, constraints=limits)
    asked = {"target": "box", "action": action, "service_name": unit}
    (result,) = call(tmp_path, "manage_service", asked, one)["results"]
    return dict(result)


def timers(machine: Machine) -> str:
    return machine.ssh("systemctl list-units --all --plain --no-legend 'systemmanager-revert-*'")


def pid(machine: Machine) -> str:
    return machine.ssh("systemctl show -P MainPID ssh").strip()


def test_a_restart_that_lets_us_in_again_is_kept(tmp_path: Path, machine: Machine) -> None:
    before = pid(machine)
    data = manage(tmp_path, machine, "restart", "ssh")["data"]
    assert data["active"] == "active" and pid(machine) != before and timers(machine) == ""


def test_what_lets_nobody_in_is_taken_back_by_the_target(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutoff, "REVERT_AFTER", 12)
    monkeypatch.setattr(cutoff, "REACH_WITHIN", 4)
    error = manage(tmp_path, machine, "stop", "ssh")["error"]
    assert error["code"] == "cut_off" and "systemctl start ssh.service" in error["message"], error
    assert machine.ssh("echo in") == ""
    until(lambda: machine.ssh("echo in") == "in\n", "the target takes it back", 30)
    assert machine.ssh("systemctl is-active ssh") == "active\n"


def test_without_a_way_back_nothing_is_changed(tmp_path: Path, machine: Machine) -> None:
    before = pid(machine)
    error = manage(tmp_path, machine, "restart", "ssh", USER)["error"]
    assert error["code"] == "command_failed" and "no way back" in error["message"], error
    assert "systemd-run" in error["hint"] and pid(machine) == before


@pytest.mark.parametrize("action", ["restart", "stop"])
def test_an_sshd_that_would_not_start_again_is_left_alone(tmp_path: Path, machine: Machine, action: str) -> None:
    machine.ssh("echo Nonsense yes >/etc/ssh/sshd_config.broken; cp /etc/ssh/sshd_config /tmp/kept; "
                "cat /etc/ssh/sshd_config.broken >>/etc/ssh/sshd_config")  # fmt: skip
    before = pid(machine)
    try:
        error = manage(tmp_path, machine, action, "ssh")["error"]
    finally:
        machine.ssh("cp /tmp/kept /etc/ssh/sshd_config")
    assert "would not start again" in error["message"] and "Nonsense" in error["details"]["stderr"], error
    assert pid(machine) == before and timers(machine) == ""


@pytest.mark.parametrize("unit", ["system.slice", "basic.target"])
def test_what_would_take_the_way_back_along_is_not_done(tmp_path: Path, machine: Machine, unit: str) -> None:
    error = manage(tmp_path, machine, "stop", unit)["error"]
    assert error["code"] == "command_failed" and "console" in error["hint"], error
    assert machine.ssh(f"systemctl is-active {unit}") == "active\n"


def test_a_plan_tells_of_the_way_back(tmp_path: Path, machine: Machine) -> None:
    one = machine.target("box", constraints={"units": ["*"]})
    asked = {"target": "box", "action": "stop", "service_name": "ssh", "dry_run": True}
    (result,) = call(tmp_path, "manage_service", asked, one)["results"]
    assert "systemctl start ssh.service" in str(result["data"]["plan"]["notes"]), result
