"""Packages of this machine, by the package tool that it really has."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need
from tests.support import call, target


@pytest.fixture(autouse=True)
def apt() -> None:
    need("apt", None if shutil.which("apt-get") else "there is no apt-get here")


def ask(tmp_path: Path, tool: str, **arguments: Any) -> dict[str, Any]:
    one = target("local", constraints={"max_output_bytes": 4 * 1024 * 1024})
    (result,) = call(tmp_path, tool, {"target": "local", **arguments}, one, root=True)["results"]
    return dict(result)


def installed(name: str) -> bool:
    status = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", name], capture_output=True, text=True)
    return status.stdout.startswith("ii")


def test_waiting_updates_are_listed_with_their_versions(tmp_path: Path) -> None:
    data = ask(tmp_path, "check_system_updates")["data"]
    assert data["tool"] == "apt"
    assert data["total"] == len(data["packages"])
    assert data["security"] == sum(package.get("security", False) for package in data["packages"])
    assert isinstance(data["reboot_required"], bool)
    assert all(package["new"] != package.get("old") for package in data["packages"])


def test_an_update_without_auto_approve_changes_nothing(tmp_path: Path) -> None:
    before = subprocess.run(["dpkg-query", "-W"], capture_output=True, check=True).stdout
    data = ask(tmp_path, "update_system_packages")["data"]
    assert data["applied"] is False
    assert subprocess.run(["dpkg-query", "-W"], capture_output=True, check=True).stdout == before


@pytest.mark.parametrize(
    "name", ["nginx-", "-y", "--allow-unauthenticated", "a b", "a;b", "-oDpkg::Pre-Invoke=id", "../x.deb", "*", "a=1"]
)
def test_names_that_apt_would_read_as_something_else_are_refused(tmp_path: Path, name: str) -> None:
    reply = call(tmp_path, "install_package", {"package_name": name}, target("local"), root=True)
    assert reply["error"]["code"] == "invalid_arguments"


def test_a_name_is_never_read_as_a_regular_expression(tmp_path: Path) -> None:
    error = ask(tmp_path, "install_package", package_name="bas.")["error"]
    assert error["code"] == "not_found"


def test_an_unknown_package_is_answered_with_what_is_near(tmp_path: Path) -> None:
    error = ask(tmp_path, "install_package", package_name="bassh")["error"]
    assert error["code"] == "not_found"
    assert "bash" in error["hint"]


@pytest.fixture
def removable() -> Iterator[str]:
    """A tiny package that nothing needs, away again afterwards."""
    known = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True).stdout.split()
    name = next((name for name in ("hello", "sl", "figlet") if name in known and not installed(name)), None)
    need("apt", None if name else "the package lists are empty (apt-get update)")
    assert name is not None
    yield name
    subprocess.run(["apt-get", "-y", "-q", "purge", name], capture_output=True, check=True)


def test_a_package_is_planned_then_installed_then_already_there(tmp_path: Path, removable: str) -> None:
    planned = ask(tmp_path, "install_package", package_name=removable)["data"]
    assert planned["applied"] is False
    assert [package["name"] for package in planned["packages"]] == [removable]
    assert not installed(removable)

    done = ask(tmp_path, "install_package", package_name=removable, auto_approve=True)["data"]
    assert done["applied"] is True
    assert [package["name"] for package in done["packages"]] == [removable]
    assert "old" not in done["packages"][0]
    assert installed(removable)

    again = ask(tmp_path, "install_package", package_name=removable, auto_approve=True)["data"]
    assert again["packages"] == []


def test_the_work_needs_an_approval(tmp_path: Path) -> None:
    one = target("local")
    reply = call(tmp_path, "update_packages", {"targets": ["local"], "dry_run": True}, one, root=True)
    assert reply["results"][0]["data"]["decision"] == "ask"
    assert call(tmp_path, "update_packages", {}, one, root=True)["error"]["code"] == "invalid_arguments"
