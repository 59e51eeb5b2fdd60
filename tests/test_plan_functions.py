"""What each tool's plan says: the engine's, systemd's and the package manager's own words, and nothing changed."""

import asyncio
from typing import Any

import pytest

from systemmanager.errors import EngineUnavailable, NotFound
from systemmanager.operation import CATALOGUE
from systemmanager.operations.container_update import plan_update
from systemmanager.operations.containers import plan_container
from systemmanager.operations.images import plan_pull
from systemmanager.operations.packages import plan_install, plan_updates
from systemmanager.operations.services import plan_service
from systemmanager.plan import Plan
from tests.support import FakeShell, run

WITHOUT = {"apply_plan", "job_cancel"}
"""What carries plans out, or ends a job, has none."""

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_every_tool_that_changes_something_plans() -> None:
    changing = {name for name, operation in CATALOGUE.items() if operation.mutates}
    planning = {name for name, operation in CATALOGUE.items() if operation.plan is not None}
    assert planning <= changing and changing - planning == WITHOUT


def told(plan: Plan) -> list[tuple[str | None, ...]]:
    return [(one.field, one.before, one.after) for one in plan.changes]


# --- Units -----------------------------------------------------------------------------------------------------------

SHOW = [
    "systemctl", "show", "--property=Id,Description,LoadState,ActiveState,SubState,UnitFileState,FragmentPath,MainPID,"
    "MemoryCurrent,TasksCurrent,NRestarts,Result,ExecMainCode,ExecMainStatus,StateChangeTimestamp,NeedDaemonReload",
    "--", "x",
]  # fmt: skip

UNITS: list[tuple[str, str, str, list[Any], str | None]] = [
    ("stop", "active", "enabled", [("active", "active", "inactive")], "start"),
    ("start", "active", "enabled", [], None),
    ("start", "inactive", "enabled", [("active", "inactive", "active")], "stop"),
    ("start", "failed", "enabled", [("active", "failed", "active")], "stop"),
    ("stop", "failed", "enabled", [], None),
    ("stop", "activating", "enabled", [("active", "activating", "inactive")], "start"),
    ("restart", "active", "enabled", [("active", "active, pid 7", "active, a new process")], None),
    ("restart", "inactive", "enabled", [("active", "inactive", "active")], "stop"),
    ("enable", "active", "enabled", [], None),
    ("enable", "active", "disabled", [("at boot", "disabled", "enabled")], "disable"),
    ("disable", "active", "enabled", [("at boot", "enabled", "disabled")], "enable"),
]


@pytest.mark.parametrize(("action", "active", "enabled", "changes", "back"), UNITS)
def test_of_a_unit(action: Any, active: str, enabled: str, changes: list[Any], back: str | None) -> None:
    said = f"Id=x.service\nLoadState=loaded\nActiveState={active}\nSubState=s\nUnitFileState={enabled}\nMainPID=7\n"
    plan = run(plan_service(FakeShell([{"argv": SHOW, "stdout": said}]), action, "x"))
    assert told(plan) == changes and (plan.inverse is None) == bool(plan.no_inverse)
    assert (plan.inverse.arguments if plan.inverse else None) == (
        {"action": back, "service_name": "x.service"} if back else None
    )
    assert plan.preconditions["active"] == active and plan.preconditions["enabled"] == enabled


def test_a_unit_whose_files_were_edited_meanwhile_has_moved() -> None:
    """Its own file and its drop-ins, as systemctl cat shows them; what stands in them is in no answer."""
    said = "Id=x.service\nLoadState=loaded\nActiveState=active\nSubState=s\nMainPID=7\nFragmentPath=/etc/x.service\n"

    def planned(text: str, status: int = 0) -> Plan:
        cat = ["systemctl", "cat", "--no-pager", "--", "x.service"]
        calls: list[dict[str, Any]] = [{"argv": SHOW, "stdout": said}, {"argv": cat, "stdout": text, "status": status}]
        return run(plan_service(FakeShell(calls), "restart", "x"))

    first, again, other = (
        planned(text)
        for text in (
            "[Service]\nExecStart=a -p hunter2\n",
            "[Service]\nExecStart=a -p hunter2\n",
            "[Service]\nExecStart=b\n",
        )
    )
    assert first.preconditions == again.preconditions != other.preconditions
    assert first.preconditions["files"] != other.preconditions["files"] and "hunter2" not in str(first)
    assert planned("", 1).preconditions["files"] is None, "where they can't be read, the rest still counts"


# --- Containers and images -------------------------------------------------------------------------------------------


class Engine:
    """An engine to be looked at: whatever would change it is not there."""

    def __init__(self, status: str = "running", now: str | Exception = NEW, **host: Any) -> None:
        self.now, self.host, self.status = now, host, status

    async def inspect(self, name: str) -> dict[str, Any]:
        running = self.status == "running"
        return {
            "Id": "c" * 64, "Name": "/db", "Image": "sha256:" + "1" * 64, "HostConfig": self.host,
            "State": {"Status": self.status, "Running": running, "StartedAt": "t"}, "Config": {"Image": "pg:16"},
        }  # fmt: skip

    async def inspect_image(self, name: str) -> dict[str, Any]:
        if name == "gone:latest":
            raise NotFound("no such image")
        return {"Id": "sha256:" + "1" * 64, "RepoDigests": [f"pg@{OLD}"]}

    async def digest_now(self, reference: str) -> str:
        if isinstance(self.now, Exception):
            raise self.now
        if self.now == "hangs":
            await asyncio.Event().wait()
        return self.now


CONTAINERS: list[tuple[str, Engine, list[Any], str | None]] = [
    ("stop", Engine(), [("state", "running", "exited")], "start"),
    ("start", Engine(), [], None),
    ("start", Engine("exited"), [("state", "exited", "running")], "stop"),
    ("restart", Engine(), [("state", "running", "running again")], None),
    ("restart", Engine("exited"), [("state", "exited", "running")], "stop"),
    ("stop", Engine(AutoRemove=True), [("state", "running", "exited")], None),
]


@pytest.mark.parametrize(("action", "engine", "changes", "back"), CONTAINERS)
def test_of_a_container(action: Any, engine: Any, changes: list[Any], back: str | None) -> None:
    plan = run(plan_container(engine, action, "db"))
    assert told(plan) == changes and (plan.inverse is None) == bool(plan.no_inverse)
    assert (plan.inverse.arguments["action"] if plan.inverse else None) == back
    assert plan.preconditions["container"] == "c" * 64


def test_of_an_image_that_the_registry_has_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Engine()
    assert told(run(plan_pull(engine, "pg", "16"))) == [("digest", OLD, NEW)]
    assert told(run(plan_pull(engine, "gone"))) == [("digest", None, NEW)]
    plan = run(plan_update(engine, "db"))
    assert told(plan) == [("digest", OLD, NEW)] and plan.preconditions["newest image"] == NEW


def test_of_an_image_that_is_the_newest() -> None:
    engine: Any = Engine(now=OLD)
    assert told(run(plan_pull(engine, "pg", "16"))) == [] == told(run(plan_update(engine, "db")))


@pytest.mark.parametrize("now", [EngineUnavailable("no route"), "hangs"], ids=["fails", "hangs"])
def test_of_an_image_whose_registry_does_not_answer(now: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("systemmanager.operations.images.WITHIN", 0.01)
    engine: Any = Engine(now=now)
    plan = run(plan_update(engine, "db"))
    assert told(plan) == [("digest", OLD, "what its registry has then")]
    assert plan.preconditions["newest image"] is None and "regist" in " ".join(plan.notes or [])


# --- Packages --------------------------------------------------------------------------------------------------------

RELEASE = {"argv": ["cat", "/etc/os-release"], "stdout": "ID=debian\n"}
SIMULATE = ["apt-get", "-s", "-q", "-o", "Debug::NoLocking=1", "-o", "APT::Get::Show-User-Simulation-Note=false"]
SIMULATED = """Inst curl [7.1] (7.2 Debian-Security:12 [amd64])
Inst libnew (1.0 Debian:12 [amd64])
Remv old [0.9]
1 upgraded, 1 newly installed, 1 to remove and 0 not upgraded.
"""


def test_of_packages_from_the_simulation_with_versions() -> None:
    shell: Any = FakeShell([RELEASE, {"argv": [*SIMULATE, "--with-new-pkgs", "upgrade"], "stdout": SIMULATED}])
    plan = run(plan_updates(shell))
    assert told(plan) == [("security update", "7.1", "7.2"), (None, None, "1.0"), (None, "0.9", None)]
    assert plan.preconditions["package curl"] == "7.1 -> 7.2" and plan.inverse is None and plan.no_inverse


def test_where_no_update_is_known_of_the_plan_says_that_the_sources_are_asked_again() -> None:
    nothing = "0 upgraded, 0 newly installed, 0 to remove and 0 not upgraded.\n"
    shell: Any = FakeShell([RELEASE, {"argv": [*SIMULATE, "--with-new-pkgs", "upgrade"], "stdout": nothing}])
    plan = run(plan_updates(shell))
    assert plan.changes == [] and "asked again" in (plan.notes or [""])[0]


def test_of_what_is_only_shown_nothing_would_change() -> None:
    shell: Any = FakeShell([])
    assert run(plan_install(shell, "curl")).changes == []


def test_without_root_dnf_names_the_updates_that_it_knows_of() -> None:
    listing = "curl.x86_64  7.2-1  updates\n"
    installed = {"argv": ["rpm", "-qa", "--qf", r"%{NAME}\t%{ARCH}\t%{EVR}\n"], "stdout": "curl\tx86_64\t7.1-1\n"}
    refused = {
        "argv": ["dnf", "--setopt=exit_on_lock=True", "--assumeno", "upgrade"],
        "status": 1,
        "stderr": "Error: superuser privileges needed",
    }
    advised = {"argv": ["dnf", "-q", "updateinfo", "list", "--security"]}
    listed = {"argv": ["dnf", "-q", "check-update"], "status": 100, "stdout": listing}
    release = {**RELEASE, "stdout": "ID=fedora\n"}
    plan = run(plan_updates(FakeShell([release, refused, installed, dict(installed), listed, advised])))
    assert told(plan) == [(None, "7.1-1", "7.2-1")] and "dnf needs root" in (plan.notes or [""])[0]
