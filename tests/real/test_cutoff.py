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


@pytest.mark.parametrize(
    ("action", "unit", "back"),
    [
        ("stop", "ssh.service", "start"),
        ("stop", "sshd", "start"),
        ("restart", "ssh.socket", "restart"),
        ("restart", "systemd-networkd.service", "restart"),
        ("stop", "wg-quick@wg0.service", "start"),
        ("stop", "tailscaled.service", "start"),
        ("start", "nftables.service", "stop"),
        ("restart", "ufw.service", "stop"),
        ("stop", "firewalld.service", "start"),
        ("start", "ssh.service", None),
        ("disable", "ssh.service", None),
        ("enable", "ufw.service", None),
        ("restart", "nginx.service", None),
        ("stop", "ssh-agent.service", None),
    ],
)
def test_each_change_has_its_way_back(action: str, unit: str, back: str | None) -> None:
    assert cutoff.way_back(action, unit) == back
