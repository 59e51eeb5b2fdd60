"""Waves where something beside the change itself goes wrong, or takes its time."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import CommandFailed, Unsupported
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobStore
from systemmanager.load import InFlight
from systemmanager.operation import Risk
from systemmanager.plans.planner import _differences
from systemmanager.plans.store import KEPT, Kept, PlanStore
from systemmanager.policy.demands import Approvals, Demand
from systemmanager.ports import Output
from systemmanager.request import Permit
from tests.fakes import codes
from tests.support import OPERATOR, UNTAINTED, principal, run
from tests.test_waves import RESTART, Fleet, Machine, left


class Timed(Fleet):
    """When each restart began; `gone` answer nothing any more."""

    def __init__(self, folder: Path, count: int = 4, **fields: Any) -> None:
        self.times, self.gone = dict[str, float](), set[str]()
        super().__init__(folder, count, **fields)

    def _port(self, permit: Permit, port: str) -> Any:
        fleet = self

        class One(Machine):
            async def run(self, *argv: str, **options: Any) -> Output:
                if self.id in fleet.gone:
                    raise CommandFailed("it answers nothing")
                if argv[1:2] == ("restart",):
                    fleet.times[self.id] = time.monotonic()
                return await super().run(*argv, **options)

        return One(self, permit.target.id)

    def told(self, when: str, happens: Any) -> Any:
        async def progress(done: float, total: int, message: str) -> None:
            if message.startswith(when):
                happens()

        return progress


def test_between_two_waves_it_waits_and_before_the_first_it_does_not(tmp_path: Path) -> None:
    fleet, began = Timed(tmp_path), time.monotonic()
    fleet.call(strategy={"batch": "1,100%", "pause": 0.3})
    assert fleet.times["w-01"] - began < 0.3 <= fleet.times["w-02"] - fleet.times["w-01"]


def test_a_target_that_failed_is_not_asked_how_it_is(tmp_path: Path) -> None:
    fleet = Timed(tmp_path)
    fleet.bad.add("w-02")
    fleet.call(strategy={"batch": "100%"})
    assert {id for id, what in fleet.log if what == "probe"} == {"w-01", "w-03", "w-04"}


def test_without_an_audit_log_no_wave_more_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Timed(tmp_path)
    written = fleet.gateway.journal.event

    async def event(what: str, details: dict[str, Any], subject: str = "") -> None:
        if details.get("wave") == 2:
            fleet.gateway.degraded["audit"] = "the disk is full"
        else:
            await written(what, details, subject)

    monkeypatch.setattr(fleet.gateway.journal, "event", event)
    reply = fleet.call()
    assert fleet.begun == ["w-01"] and left(reply) == ["w-02", "w-03", "w-04"]
    assert "the disk is full" in reply["results"][-1]["error"]["message"]


def test_where_a_target_can_not_be_asked_how_it_is_the_tool_s_word_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(machine: Machine) -> dict[str, str]:
        raise Unsupported("there is no such thing here")

    monkeypatch.setattr(Machine, "probe", probe)
    fleet = Timed(tmp_path)
    fleet.bad.add("w-03")
    reply = fleet.call(strategy={"batch": "1,2,3,4"})
    assert fleet.begun == ["w-01", "w-02", "w-03"] and left(reply) == ["w-04"]


def test_where_nobody_can_be_asked_how_targets_are_no_wave_more_begins(tmp_path: Path) -> None:
    fleet = Timed(tmp_path)
    fleet.gateway._in_flight = InFlight(1)
    reply = fleet.call()
    assert fleet.begun == ["w-01"] and "w-01 (busy)" in reply["results"][-1]["error"]["message"]


def test_a_yes_holds_for_every_wave(tmp_path: Path) -> None:
    demands = Approvals(require=(Demand(frozenset({Risk.HIGH})),))
    fleet = Timed(tmp_path, policy=replace(UNTAINTED, approvals=demands))

    async def approve(_: Any) -> str:
        return "ann"

    given = {**RESTART, "strategy": {}}
    reply = run(fleet.gateway.call(principal("admin"), "manage_service", given, approve=approve)).as_dict()
    assert reply["ok"] and len(fleet.begun) == 4


def test_a_target_that_can_not_be_looked_at_any_more_is_left_alone(tmp_path: Path) -> None:
    fleet = Timed(tmp_path, plans=PlanStore(tmp_path / "plans.sqlite"))
    id = fleet.call(dry_run=True)["results"][0]["data"]["plan_id"]
    reply = fleet.call("apply_plan", plan_id=id, progress=fleet.told("wave 2", lambda: fleet.gone.add("w-02")))
    assert fleet.begun == ["w-01"]
    assert codes(reply) == {
        "w-01": "ok", "w-02": "precondition_failed", "w-03": "not_started", "w-04": "not_started"
    }  # fmt: skip


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_of_a_tool_that_is_gone_says_so(tmp_path: Path) -> None:
    fleet = Timed(tmp_path, plans=PlanStore(tmp_path / "plans.sqlite"))
    assert fleet.gateway.plans is not None
    fleet.gateway.plans.keep(OPERATOR.subject, Kept("2" * 64, "reboot_everything", {}, {"targets": {}}))
    error = fleet.call("apply_plan", plan_id="2" * 64)
    assert error["error"]["code"] == "unknown_tool" and "reboot_everything" in error["error"]["message"]


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"a": {}}, {"a": {"x": "1"}}, ("a", "x", "None", "1")),
        ({"a": {"x": "1"}}, {"a": {}}, ("a", "x", "1", "None")),
        ({"a": {"x": "1"}}, {"a": {"x": "2"}}, ("a", "x", "1", "2")),
        ({"a": {}}, {}, ("a", "plan", "made", "denied")),
        ({}, {"a": {}}, ("a", "plan", "none", "made")),
    ],
)
def test_every_way_in_which_a_world_moves_is_told(then: Any, now: Any, told: tuple[str, ...]) -> None:
    (found,) = _differences({"targets": then}, {"targets": now}, {})
    assert (found["target"], found["name"], found["was"], found["is"]) == told


def test_plans_are_forgotten_after_a_day(tmp_path: Path) -> None:
    now = [1_000_000.0]
    store = PlanStore(tmp_path / "plans.sqlite", lambda: now[0])
    store.keep("ann", Kept("1" * 64, "manage_service", {}, {"targets": {}}))
    now[0] += KEPT + 1
    store.keep("ann", Kept("2" * 64, "manage_service", {}, {"targets": {}}))
    assert store.basis("1" * 64, "ann") is None and store.basis("2" * 64, "ann") is not None


def test_a_job_remembers_who_was_not_well_after_its_turn(tmp_path: Path) -> None:
    async def work() -> None:
        jobs = Jobs(JobStore(tmp_path / "jobs.sqlite"), tmp_path / "jobs")
        jobs.runs = True
        fleet = Timed(tmp_path, jobs=jobs)
        fleet.ill.add("w-01")
        reply = await fleet.gateway.call(OPERATOR, "manage_service", {**RESTART, "strategy": {}})
        kept = jobs.store.results(reply.call_id)
        assert kept["w-01"]["data"]["unhealthy"] == "command_failed" and kept["w-01"]["wave"] == 1
        assert kept["w-02"]["error"]["code"] == "not_started"
        await jobs.leave()

    run(work())
