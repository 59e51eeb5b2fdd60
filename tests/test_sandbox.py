"""The sandbox as it is, what systemd is told, and what a gateway without its sandbox refuses."""

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from systemmanager import sandbox
from systemmanager.operation import CATALOGUE
from systemmanager.policy.gate import decide
from systemmanager.sandbox import Promise, lost
from systemmanager.server import app, systemd
from systemmanager.settings import prepare_state, read
from tests.policy.test_rules import judged, request
from tests.support import call, run, target

PROMISES: tuple[Promise, ...] = Promise.__args__  # type: ignore[attr-defined]


def test_every_promise_of_the_unit_has_a_look_and_every_look_a_promise() -> None:
    unit = (Path(__file__).parent.parent / "nix/module/promises.nix").read_text()
    assert set(PROMISES) == set(sandbox._LOOKS) == set(re.findall(r'"([a-z_]+)"', unit))


def test_a_process_outside_a_sandbox_has_lost_what_was_promised(tmp_path: Path) -> None:
    found = lost(PROMISES, (tmp_path,))
    assert {"no_new_privileges", "no_writable_code", "nothing_to_execute"} <= found.keys()
    assert found["no_new_privileges"] == "NoNewPrivs is 0" and found["no_writable_code"]
    assert str(tmp_path) in found["nothing_to_execute"]


def test_what_can_not_be_looked_at_counts_as_lost(tmp_path: Path) -> None:
    assert "can't be looked at" in lost(("nothing_to_execute",), (tmp_path / "absent",))["nothing_to_execute"]


def test_what_is_not_promised_is_not_missed(tmp_path: Path) -> None:
    assert lost((), (tmp_path,)) == {}


def test_the_umask_is_read_from_the_process_itself(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert lost(("closed_umask",), (tmp_path,)) == {}
        os.umask(0o022)
        assert lost(("closed_umask",), (tmp_path,)) == {"closed_umask": "Umask is 0022"}
    finally:
        os.umask(before)


@pytest.mark.parametrize("required", [True, False])
def test_a_lost_part_is_told_and_where_it_is_required_refuses_changes(tmp_path: Path, required: bool) -> None:
    given = read(
        {
            "SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state"),
            "SYSTEMMANAGER_HARDENING": "no_new_privileges",
            "SYSTEMMANAGER_REQUIRE_HARDENING": str(required).lower(),
        }
    )
    degraded: dict[str, str] = {}
    weakened = app.judge_sandbox(given, prepare_state(given), degraded)
    assert "no_new_privileges: NoNewPrivs is 0" in degraded["sandbox"]
    assert weakened == (("no_new_privileges",) if required else ())


def test_who_requires_a_sandbox_that_no_unit_promises_changes_nothing(tmp_path: Path) -> None:
    given = read({"SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state"), "SYSTEMMANAGER_REQUIRE_HARDENING": "true"})
    degraded: dict[str, str] = {}
    assert app.judge_sandbox(given, prepare_state(given), degraded) and "promises nothing" in degraded["sandbox"]


CHANGE = CATALOGUE["manage_service"].access


def test_without_its_sandbox_the_gateway_reads_and_changes_nothing() -> None:
    change = request(CHANGE, weakened=("system_calls",))
    verdict = judged("hardening", change)
    assert (verdict.answer, verdict.code) == ("deny", "not_hardened") and "system_calls" in verdict.reason
    assert decide(change).permit is None
    assert judged("hardening", request(weakened=("system_calls",))).answer == "allow"
    assert judged("hardening", request(CHANGE)).answer == "allow"


def test_a_call_that_changes_something_is_refused_by_a_gateway_without_its_sandbox(tmp_path: Path) -> None:
    asked = {"action": "restart", "service_name": "nginx", "target": "web-01"}
    reply = call(tmp_path, "manage_service", asked, target(), root=True, weakened=("system_calls",))
    assert reply["results"][0]["error"]["code"] == "not_hardened"


# --- What systemd is told ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@sm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name if request.param == "path" else "\0" + name[1:])
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_ready_and_reloading_are_said_as_systemd_wants_them(told: socket.socket) -> None:
    systemd.ready("3 targets\nREADY=0")
    assert told.recv(1000) == b"READY=1\nSTATUS=3 targets READY=0"
    systemd.reloading()
    lines = told.recv(1000).decode().splitlines()
    assert lines[0] == "RELOADING=1" and re.fullmatch(r"MONOTONIC_USEC=[0-9]+", lines[1])


def test_signs_of_life_come_from_the_loop_twice_as_often_as_wanted(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.patience() == 0.01

    async def live() -> list[bytes]:
        async with systemd.watched():
            return [await asyncio.to_thread(told.recv, 100) for _ in range(2)]

    assert run(live()) == [b"WATCHDOG=1", b"WATCHDOG=1"]
    said = told.recv(1000)
    while said == b"WATCHDOG=1":
        said = told.recv(1000)
    assert said.startswith(b"STOPPING=1")


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("0", ""), ("x", ""), ("20000", "1")])
def test_who_is_not_watched_gives_no_signs_of_life(usec: str, pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.patience() is None


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
def test_nobody_to_tell_is_no_failure(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert systemd.notify("READY=1") is False
