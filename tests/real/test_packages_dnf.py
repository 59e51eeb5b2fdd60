"""Packages by a real dnf 4, with a repository of its own, on a machine that says it is Rocky Linux."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from systemmanager.operations.package_tools import _running_old_code
from tests.real.machine import Machine
from tests.real.ssh_ports import ssh_executor
from tests.support import call, run


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


def test_a_lock_is_waited_for(tmp_path: Path, rocky: Machine) -> None:
    rocky.ssh("mkdir -p /var/cache/dnf; sleep 4 >/dev/null 2>&1 & echo -n $! >/var/cache/dnf/metadata_lock.pid")
    error = ask(tmp_path, rocky, "update_system_packages")["error"]
    assert error["code"] == "locked" and error["retryable"] and "sleep" in error["message"], error
    done = ask(tmp_path, rocky, "update_system_packages", auto_approve=True)["data"]
    assert [one["name"] for one in done["packages"]] == ["sm-app"]


def test_services_that_run_what_was_replaced_are_named(tmp_path: Path, rocky: Machine) -> None:
    """As after an update: the file on the disk is another one than the one that runs."""
    rocky.ssh("cp /bin/sleep /usr/local/bin/sm-old && systemd-run --quiet --unit=sm-old /usr/local/bin/sm-old 1000")

    async def found() -> Any:
        async with ssh_executor(tmp_path) as opened:
            return await _running_old_code(await opened(rocky.target(), "Shell"))

    try:
        assert "sm-old.service" not in run(found())
        rocky.ssh("cp /bin/sleep /usr/local/bin/sm-new && mv /usr/local/bin/sm-new /usr/local/bin/sm-old")
        assert "sm-old.service" in run(found())
        data = ask(tmp_path, rocky, "update_system_packages", auto_approve=True)["data"]
        assert isinstance(data["restart_services"], list)
    finally:
        rocky.ssh("systemctl stop sm-old; rm -f /usr/local/bin/sm-old")


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
