"""Packages by a real dnf 4, with a repository of its own, on a machine that says it is Rocky Linux."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.machine import Machine
from tests.support import call


@pytest.fixture
def rocky(machine: Machine) -> Iterator[Machine]:
    """sm-app 1.0 is installed, 2.0 waits; sm-tool is not installed."""
    before = machine.os_release.read_text()
    machine.os_release.write_text('NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.5"\n')
    yield machine
    machine.os_release.write_text(before)
    machine.ssh("rpm -U --oldpackage --nodeps /srv/repo/noarch/sm-app-1.0-1.noarch.rpm; rpm -e sm-tool")


def ask(tmp_path: Path, machine: Machine, tool: str, **arguments: Any) -> dict[str, Any]:
    where = {"targets": ["box"]} if tool == "update_packages" else {"target": "box"}
    (result,) = call(tmp_path, tool, {**where, **arguments}, machine.target("box"))["results"]
    return dict(result)


def installed(machine: Machine) -> list[str]:
    return sorted(machine.ssh("rpm -qa").split())


def test_waiting_updates_are_listed(tmp_path: Path, rocky: Machine) -> None:
    data = ask(tmp_path, rocky, "check_system_updates")["data"]
    assert (data["tool"], data["total"], data["security"]) == ("dnf", 1, 1)
    assert data["packages"] == [{"name": "sm-app", "old": "1.0-1", "new": "2.0-1", "security": True}]


def test_updates_are_shown_first_and_then_made(tmp_path: Path, rocky: Machine) -> None:
    shown = ask(tmp_path, rocky, "update_system_packages")["data"]
    assert shown["applied"] is False and [one["name"] for one in shown["packages"]] == ["sm-app"]
    assert installed(rocky) == ["sm-app-1.0-1.noarch"]
    done = ask(tmp_path, rocky, "update_system_packages", auto_approve=True)["data"]
    assert done["applied"] is True and installed(rocky) == ["sm-app-2.0-1.noarch"]
    assert ask(tmp_path, rocky, "check_system_updates")["data"]["total"] == 0


def test_a_fleet_is_updated_at_once(tmp_path: Path, rocky: Machine) -> None:
    done = ask(tmp_path, rocky, "update_packages")["data"]
    assert done["applied"] is True and installed(rocky) == ["sm-app-2.0-1.noarch"]


def test_a_package_is_installed(tmp_path: Path, rocky: Machine) -> None:
    shown = ask(tmp_path, rocky, "install_package", package_name="sm-tool")["data"]
    assert shown["applied"] is False and "sm-tool-1.0-1.noarch" not in installed(rocky)
    done = ask(tmp_path, rocky, "install_package", package_name="sm-tool", auto_approve=True)["data"]
    assert done["applied"] is True and installed(rocky) == ["sm-app-1.0-1.noarch", "sm-tool-1.0-1.noarch"]


def test_a_package_that_does_not_exist_is_not_found(tmp_path: Path, rocky: Machine) -> None:
    for auto_approve in (False, True):
        result = ask(tmp_path, rocky, "install_package", package_name="sm-tol", auto_approve=auto_approve)
        assert result["error"]["code"] == "not_found", result
    assert installed(rocky) == ["sm-app-1.0-1.noarch"]
