"""What a call may do: approvals, dry runs, grants, faults, and a registry that changes under it."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from systemmanager import gateway as gateway_module
from systemmanager.errors import ApprovalRefused, ApprovalRequired
from systemmanager.ports import SystemStatus
from systemmanager.registry import Registry
from systemmanager.request import Permit, Request
from tests.fakes import PULL, STATUS, Engine, ask, codes, engines, facts, fleet, phases
from tests.support import OPERATOR, fake_gateway, principal, records, registry, run, target


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """What the gateway logs; without this, tracebacks are drawn with colours and locals."""
    with capture_logs() as entries:
        yield entries


# --- Approvals and dry runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "code"),
    [
        (ApprovalRefused("you said no"), "approval_refused"),
        (ApprovalRequired("nobody is there"), "approval_required"),
        (None, "approval_refused"),
    ],
    ids=["a no", "nobody there", "no name"],
)
def test_without_a_yes_nothing_runs(tmp_path: Path, says: Exception | None, code: str) -> None:
    engine = Engine()
    asked: list[Request] = []

    async def approve(requests: Sequence[Request]) -> str:
        asked.extend(requests)
        if says is not None:
            raise says
        return ""

    reply = ask(engines(tmp_path, engine), PULL, "pull_docker_image", approve=approve)
    assert codes(reply) == {"a": code, "b": "image_not_allowed"} and engine.pulled == 0
    assert [request.target.id for request in asked] == ["a"], "nobody is asked for what is denied anyway"
    assert [phase for phase, *_ in phases(tmp_path)] == ["refused", "refused"]


def test_a_yes_is_recorded_with_who_said_it(tmp_path: Path) -> None:
    engine = Engine()

    async def approve(requests: Sequence[Request]) -> str:
        return "Ann"

    reply = ask(engines(tmp_path, engine), PULL, "pull_docker_image", approve=approve)
    assert codes(reply) == {"a": "ok", "b": "image_not_allowed"} and engine.pulled == 1
    by = [(one["phase"], one["target"], one.get("approved_by")) for one in records(tmp_path)]
    assert by == [("intent", "a", "Ann"), ("refused", "b", None), ("outcome", "a", "Ann")]


def test_without_an_approver_nothing_runs(tmp_path: Path) -> None:
    engine = Engine()
    assert codes(ask(engines(tmp_path, engine), PULL, "pull_docker_image"))["a"] == "approval_required"
    assert engine.pulled == 0


def test_an_approver_that_fails_is_a_no(tmp_path: Path) -> None:
    engine = Engine()

    async def approve(requests: Sequence[Request]) -> str:
        raise RuntimeError("hunter2")

    reply = ask(engines(tmp_path, engine), PULL, "pull_docker_image", approve=approve)
    assert reply["error"]["code"] == "internal_error" and "hunter2" not in str(reply) and engine.pulled == 0
    assert phases(tmp_path) == [("refused", None, "internal_error")]


def test_a_dry_run_asks_nobody_and_runs_nothing(tmp_path: Path) -> None:
    engine = Engine()

    async def approve(requests: Sequence[Request]) -> str:
        raise AssertionError("asked")

    reply = ask(engines(tmp_path, engine), {**PULL, "dry_run": True}, "pull_docker_image", approve=approve)
    decisions = {one["target"]: one["data"]["decision"] for one in reply["results"]}
    assert decisions == {"a": "ask", "b": "deny"} and engine.pulled == 0
    assert all(one["dry_run"] for one in records(tmp_path))


# --- Rights, faults, reload ------------------------------------------------------------------------------------------


def test_a_grant_narrows_what_a_selector_finds_and_what_a_name_may(tmp_path: Path) -> None:
    gateway, who = fleet(tmp_path, "up-1", "up-2"), principal("readonly", targets="up-2")
    assert codes(ask(gateway, {"targets": "*"}, who=who)) == {"up-2": "ok"}
    reply = ask(gateway, {"targets": ["up-1", "up-2"]}, who=who)
    assert codes(reply) == {"up-1": "target_not_granted", "up-2": "ok"}


@pytest.mark.parametrize("arguments", [{"target": "up-1"}, {"targets": ["up-1"]}, {"targets": "up-*"}])
def test_without_the_scope_nothing_is_opened(tmp_path: Path, arguments: dict[str, Any]) -> None:
    def never(permit: Permit, name: str) -> Any:
        raise AssertionError("opened")

    gateway = fake_gateway(tmp_path, never, target("up-1"))
    assert codes(ask(gateway, arguments, who=principal("container:admin"))) == {"up-1": "scope_missing"}


def test_a_target_at_fault_is_not_configured(tmp_path: Path) -> None:
    gateway = fleet(tmp_path, "up-1", "up-2")
    gateway.replace_registry(Registry(gateway.registry.targets, faults={"up-1": "${KEY} is not set"}))
    reply = ask(gateway, {"targets": "*"})
    assert codes(reply) == {"up-1": "not_configured", "up-2": "ok"}
    assert reply["results"][0]["error"]["message"] == "${KEY} is not set"


def test_a_kind_without_the_port_is_unsupported(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, facts, target("up"), target("engine", "docker"), target("api", "http"))
    assert codes(ask(gateway, {"targets": "*"})) == {"up": "ok", "engine": "unsupported", "api": "unsupported"}


def test_a_rule_that_fails_allows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(request: Request) -> Any:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(gateway_module, "decide", fails)
    reply = ask(fleet(tmp_path, "up-1", "up-2"), {"targets": "*"})
    assert codes(reply) == {"up-1": "internal_error", "up-2": "internal_error"} and "hunter2" not in str(reply)
    assert [phase for phase, *_ in phases(tmp_path)] == ["refused", "refused"]


def test_a_call_in_flight_keeps_the_registry_that_it_began_with(tmp_path: Path) -> None:
    async def work() -> dict[str, str]:
        entered, go_on = asyncio.Event(), asyncio.Event()

        class Waiting:
            async def status(self) -> SystemStatus:
                entered.set()
                await go_on.wait()
                return STATUS

        gateway = fake_gateway(tmp_path, lambda permit, name: Waiting(), target("old"))
        call = asyncio.create_task(gateway.call(OPERATOR, "get_system_status", {"target": "old"}))
        await entered.wait()
        gateway.replace_registry(registry(target("new"), version="2"))
        go_on.set()
        answers = codes((await call).as_dict())
        after = await gateway.call(OPERATOR, "get_system_status", {"target": "old"})
        assert after.error is not None and after.error["code"] == "unknown_target"
        return answers

    assert run(work()) == {"old": "ok"}
    assert {one["registry"] for one in records(tmp_path) if one["phase"] != "refused"} == {"built-in"}


def test_a_target_may_be_called_gateway(tmp_path: Path) -> None:
    class Probe:
        async def probe(self) -> dict[str, str]:
            return {"ssh": "9.6"}

    gateway = fake_gateway(tmp_path, lambda permit, name: Probe(), target("gateway", "ssh"))
    assert ask(gateway, {"targets": "gateway"}, "health_check")["results"][0]["data"]["answered"] == {"ssh": "9.6"}
    assert "version" in ask(gateway, {}, "health_check")["results"][0]["data"]


def test_the_gateway_s_own_name_opens_nothing(tmp_path: Path) -> None:
    gateway = fleet(tmp_path, "up")
    reply = ask(gateway, {"targets": ["gateway"]}, "health_check", who=principal(targets="up"))
    assert "version" in reply["results"][0]["data"], "the gateway answers, no executor is opened"
    assert gateway.runner.last_status == {}
