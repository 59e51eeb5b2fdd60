"""freeze and thaw: what is stopped, from when on, and that nothing is stopped by less than a person."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from systemmanager.freezing import NAME, NOTHING, UNREADABLE, Freezer, Frozen, change, read
from systemmanager.operation import CATALOGUE
from systemmanager.policy.rules.freeze import freeze
from systemmanager.request import Answer, Request
from systemmanager.server import app
from systemmanager.settings import Settings
from tests.conftest import need
from tests.fakes import Facts, ask, codes, fleet, phases
from tests.serving import Served, serving
from tests.support import OPERATOR, fake_gateway, principal, real_gateway, run, target
from tests.test_cli import systemmanager

WEB = target("web-01", "ssh", metadata={"tags": ["web"]})
API = target("api", "http")

STOPPED: dict[str, tuple[Frozen, str, Any, bool]] = {
    "nothing": (NOTHING, "manage_service", WEB, False),
    "all": (Frozen(all=True), "get_system_status", WEB, True),
    "all, health of the gateway": (Frozen(all=True), "health_check", None, False),
    "all, health of a target": (Frozen(all=True), "health_check", WEB, True),
    "all, list": (Frozen(all=True), "list_targets", None, False),
    "all, explanation": (Frozen(all=True), "explain_access", None, False),
    "all, audit": (Frozen(all=True), "query_audit", WEB, True),
    "writes, a write": (Frozen(writes=True), "manage_service", WEB, True),
    "writes, a read": (Frozen(writes=True), "get_system_status", WEB, False),
    "writes, a diagnostic": (Frozen(writes=True), "ping_host", WEB, False),
    "writes, a POST": (Frozen(writes=True), "http_request_test", WEB, True),
    "egress, a diagnostic": (Frozen(egress=True), "ping_host", WEB, True),
    "egress, a request": (Frozen(egress=True), "http_request_test", WEB, True),
    "egress, an HTTP target": (Frozen(egress=True), "check_ssl_certificate", API, True),
    "egress, a name": (Frozen(egress=True), "dns_lookup", WEB, True),
    "egress, a pull": (Frozen(egress=True), "pull_docker_image", WEB, True),
    "egress, a stack from git": (Frozen(egress=True), "deploy_stack", WEB, True),
    "egress, packages": (Frozen(egress=True), "install_package", WEB, True),
    "egress, the end of a job": (Frozen(egress=True), "job_cancel", None, False),
    "egress, a write": (Frozen(egress=True), "manage_service", WEB, False),
    "a target": (Frozen(targets=("web-01",)), "get_system_status", WEB, True),
    "a selector": (Frozen(targets=("db-01", "tag:web")), "get_system_status", WEB, True),
    "another target": (Frozen(targets=("web-1", "tag:db")), "manage_service", WEB, False),
    "no selector": (Frozen(targets=("tga:web",)), "get_system_status", WEB, True),
}


def request(tool: str, where: Any, frozen: Frozen, *via: Any) -> Request:
    operation = CATALOGUE[tool]
    own, where = where is None, where or WEB
    stopped = frozen.on(where, via)
    return Request("c1", OPERATOR, operation, operation.access, {}, where, via=via, freeze=stopped, own=own)


@pytest.mark.parametrize("name", STOPPED)
def test_what_a_switch_stops(name: str) -> None:
    frozen, tool, where, stops = STOPPED[name]
    verdict = freeze(request(tool, where, frozen))
    assert verdict.answer is (Answer.DENY if stops else Answer.ALLOW)
    assert not stops or (verdict.code == "frozen" and "thaw" in str(verdict.fix))


def test_a_frozen_jump_host_stops_what_goes_through_it() -> None:
    asked = request("get_system_status", WEB, Frozen(targets=("bastion",)), target("bastion", "ssh"))
    assert freeze(asked).answer is Answer.DENY


# --- The file -------------------------------------------------------------------------------------------------------


def test_switches_add_up_and_are_taken_back_one_by_one(tmp_path: Path) -> None:
    def does(on: bool, *targets: str, **switches: bool) -> str:
        given = {"all": False, "writes": False, "egress": False, **switches}
        return change(tmp_path, "local:0", freeze=on, targets=targets, **given).parts

    assert does(True, writes=True) == "writes"
    assert does(True, "web-01", egress=True) == "writes, egress, target web-01"
    assert does(True, "web-01", "tag:db") == "writes, egress, target web-01, target tag:db"
    assert does(False, "web-01", writes=True) == "egress, target tag:db"
    assert does(True) == "all, egress, target tag:db"
    assert does(False, all=True) == "" and not (tmp_path / NAME).exists()
    assert does(True) == "all" and (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert does(False) == "" and read(tmp_path / NAME) == NOTHING


BROKEN = ["", "[]", "{", "null", '{"all": "no", "writes": false, "egress": false, "targets": [], "by": "", "since": 0}',
          '{"all": false, "writes": false, "egress": false, "targets": [1], "by": "", "since": 0}', "[" * 60_000,
          '{"all": false}', "x" * 200_000]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_a_file_that_cannot_be_read_freezes_all(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert read(tmp_path / NAME) is UNREADABLE and Freezer(tmp_path).now().all
    assert not change(tmp_path, "local:0", freeze=False, targets=(), all=False).anything


def test_a_folder_in_its_place_freezes_all(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert Freezer(tmp_path).now().all


def test_changes_at_once_lose_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        await asyncio.gather(
            *(asyncio.to_thread(change, tmp_path, "x", freeze=True, targets=(f"t{n}",), all=False) for n in range(16))
        )

    run(work())
    assert sorted(read(tmp_path / NAME).targets) == sorted(f"t{n}" for n in range(16))


# --- In the gateway ---------------------------------------------------------------------------------------------------


def freezes(folder: Path, *targets: str, **switches: bool) -> None:
    change(folder, "local:0", freeze=True, targets=targets, **{"all": False, **switches})


def test_from_now_on_nothing_runs_and_an_explanation_says_why(tmp_path: Path) -> None:
    gateway = fleet(tmp_path, "up-1", "up-2", freezer=Freezer(tmp_path))
    assert codes(ask(gateway, {"targets": "*"})) == {"up-1": "ok", "up-2": "ok"}
    freezes(tmp_path, "up-1")
    assert codes(ask(gateway, {"targets": "*"})) == {"up-1": "frozen", "up-2": "ok"}
    told = ask(gateway, {"tool": "get_system_status", "target": "up-1"}, "explain_access")
    (verdict,) = [one for one in told["results"][0]["data"]["results"][0]["verdicts"] if one["rule"] == "freeze"]
    assert verdict["answer"] == "deny" and "up-1" in verdict["reason"]
    freezes(tmp_path)
    assert codes(ask(gateway, {"targets": "*"})) == {"up-1": "frozen", "up-2": "frozen"}
    assert "all" in ask(gateway, {}, "health_check")["results"][0]["data"]["problems"]["frozen"]
    change(tmp_path, "local:0", freeze=False, targets=(), all=False)
    assert codes(ask(gateway, {"targets": "*"})) == {"up-1": "ok", "up-2": "ok"}
    assert phases(tmp_path).count(("refused", "up-1", "frozen")) == 2


def test_who_may_not_anyway_learns_nothing_of_a_freeze(tmp_path: Path) -> None:
    freezes(tmp_path)
    gateway = fleet(tmp_path, "up-1", freezer=Freezer(tmp_path))
    assert codes(ask(gateway, {"target": "up-1"}, who=principal())) == {"up-1": "scope_missing"}


def test_what_runs_is_ended_within_a_second_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def work() -> None:
        entered, finish, ended = asyncio.Semaphore(0), asyncio.Event(), []

        class Waiting(Facts):
            async def status(self) -> Any:
                entered.release()
                try:
                    await finish.wait()
                finally:
                    ended.append(self.id)
                return await Facts("up").status()

        many = [target(f"host-{n}", "ssh") for n in range(2)]
        gateway = fake_gateway(tmp_path, lambda permit, _: Waiting(permit.target.id), *many, freezer=Freezer(tmp_path))
        watching = asyncio.create_task(gateway.freezer.watch())
        call = asyncio.create_task(gateway.call(OPERATOR, "get_system_status", {"targets": "*"}))
        await entered.acquire()
        await entered.acquire()
        freezes(tmp_path, "host-0")
        began = time.monotonic()
        while not ended:
            await asyncio.sleep(0.01)
            assert time.monotonic() < began + 1
        assert ended == ["host-0"]
        finish.set()
        reply = (await call).as_dict()
        assert codes(reply) == {"host-0": "frozen", "host-1": "ok"} and not call.cancelled()
        assert gateway.freezer._runs == set()
        watching.cancel()

    run(work())
    assert ("outcome", "host-0", "frozen") in phases(tmp_path)


def test_a_freeze_between_decision_and_effect_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = fleet(tmp_path, "up-1", freezer=Freezer(tmp_path))
    decided: Callable[..., Any] = gateway.journal.decided

    async def late(*given: Any) -> None:
        await decided(*given)
        freezes(tmp_path)

    monkeypatch.setattr(gateway.journal, "decided", late)
    assert codes(ask(gateway, {"target": "up-1"})) == {"up-1": "frozen"}


def pings(folder: Path) -> list[str]:
    """Command lines of the pings that our test began."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"ping") and b"127.0.0.77" in words:
            found.append(str(words))
    return found


def test_a_command_that_runs_on_a_target_is_ended_with_its_call(tmp_path: Path) -> None:
    need("ping", None if shutil.which("ping") else "no ping")
    here = target("local", constraints={"hosts": ["127.0.0.77"]})

    async def work() -> None:
        async with real_gateway(tmp_path, here, freezer=Freezer(tmp_path)) as gateway:
            watching = asyncio.create_task(gateway.freezer.watch())
            arguments = {"host": "127.0.0.77", "count": 20}
            call = asyncio.create_task(gateway.call(OPERATOR, "ping_host", arguments))
            deadline = time.monotonic() + 10
            while not await asyncio.to_thread(pings, tmp_path) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            freezes(tmp_path, egress=True)
            assert codes((await asyncio.wait_for(call, 2)).as_dict()) == {"local": "frozen"}
            assert await asyncio.to_thread(pings, tmp_path) == []
            watching.cancel()

    run(work())


def test_a_gateway_that_runs_looks_for_itself(tmp_path: Path) -> None:
    async def work() -> None:
        async with app.running(Settings.model_validate({"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state")})) as one:
            with one.gateway.freezer.running(request("get_system_status", WEB, NOTHING)) as runs:
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(10) as runs.deadline:
                        freezes(tmp_path / "state")
                        await asyncio.Event().wait()
                assert runs.stopped and time.monotonic() < began + 1

    run(work())


# --- At the command line ----------------------------------------------------------------------------------------------

TARGETS = 'version: "1.0"\ntargets:\n  local: {id: "local", executor: "local", capabilities: ["admin"]}\n'


def test_the_command_line_freezes_with_and_without_a_gateway(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text(TARGETS)
    given = {
        "SYSTEMMANAGER_TARGETS_CONFIG": str(tmp_path / "targets.yaml"),
        "SYSTEMMANAGER_STATE_DIR": str(tmp_path / "gateway"),
    }

    def does(*words: str, check: int = 0) -> Any:
        done = systemmanager(tmp_path, *words, settings=given, check=check)
        return json.loads(done.stdout) if done.stdout else done.stderr

    assert does("freeze", "--writes", "--target", "local")["targets"] == ["local"], "the gateway is down"
    assert "no target" in does("freeze", "--target", "lokal", check=1)
    with serving(tmp_path, given) as gateway:

        async def call() -> dict[str, Any]:
            async with Served(gateway.url).client("auto", "system:read") as client:
                done = await client.call_tool("get_system_status", {}, raise_on_error=False)
                reply: dict[str, Any] = done.structured_content
                return reply

        assert codes(run(call())) == {"local": "frozen"}, "it is still in force after a start"
        does("thaw", "--target", "local")
        assert codes(run(call())) == {"local": "ok"}
        assert does("freeze")["all"] is True
        assert codes(run(call())) == {"local": "frozen"}
        assert does("thaw") == {"all": False, "by": "", "egress": False, "since": 0.0, "targets": [], "writes": False}
        assert codes(run(call())) == {"local": "ok"}
    told = [
        (one["tool"], one["subject"], one["arguments"]["frozen"])
        for one in map(json.loads, (tmp_path / "gateway/audit.jsonl").read_text().splitlines())
        if one["tool"] in ("freeze", "thaw")
    ]
    me = f"local:{os.getuid()}"
    assert told == [
        ("freeze", me, "writes, target local"), ("thaw", me, "writes"), ("freeze", me, "all, writes"), ("thaw", me, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(("method", "changes"), [("GET", False), ("HEAD", False), ("OPTIONS", False), ("POST", True)])
def test_a_request_changes_something_when_it_posts(method: str, changes: bool) -> None:
    access = CATALOGUE["http_request_test"].access_for({"method": method})
    assert access.mutates is changes and access.approval
