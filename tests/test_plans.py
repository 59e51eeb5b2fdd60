"""Plans: a dry run says what would change and changes nothing; apply_plan does that, once, if nothing has moved."""

import asyncio
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systemmanager.approvals.desk import Desk
from systemmanager.approvals.store import ApprovalStore
from systemmanager.gateway import Gateway
from systemmanager.operation import Risk
from systemmanager.plans.showing import lines_of_all
from systemmanager.plans.store import LIFETIME, Kept, PlanStore
from systemmanager.policy.demands import Approvals, Demand
from systemmanager.ports import Output
from systemmanager.request import Permit, Principal
from systemmanager.server.elicitation import question
from tests.fakes import codes
from tests.support import OPERATOR, UNTAINTED, fake_gateway, operator, principal, records, run, target

STOP = {"action": "stop", "service_name": "nginx"}


class Systemd:
    """Units of one target, as systemctl shows and changes them."""

    def __init__(self) -> None:
        self.active, self.enabled, self.pid, self.done = "active", "enabled", 7, list[str]()
        self.down = False

    async def run(self, *argv: str, privileged: bool = False, **_: Any) -> Output:
        if argv[1] == "show":
            text = f"Id=nginx.service\nLoadState=loaded\nActiveState={self.active}\nSubState=x\nMainPID={self.pid}\n"
            return Output(argv, 0, f"{text}UnitFileState={self.enabled}\n", "")
        assert privileged
        self.done.append(argv[1])
        self.active = {"stop": "inactive", "start": "active"}.get(argv[1], self.active)
        return Output(argv, 0, "", "")


class Scene:
    """A gateway with a plan store over two targets with systemd; `permits` are those that ports were opened with."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.now = 1_000_000.0
        self.folder, self.permits = folder, list[Permit]()
        self.hosts = {"web-01": Systemd(), "web-02": Systemd()}
        self.store = PlanStore(folder / "plans.sqlite", lambda: self.now)
        self.gateway = self.made(**fields)

    def made(self, **fields: Any) -> Gateway:
        def port(permit: Permit, _: str) -> Any:
            self.permits.append(permit)
            return self.hosts[permit.target.id]

        targets = [target(id, constraints={"sudo_policy": "limited"}) for id in self.hosts]
        return fake_gateway(self.folder, port, *targets, plans=self.store, **fields)

    def call(self, tool: str, arguments: dict[str, Any], who: Principal = OPERATOR) -> dict[str, Any]:
        return run(self.gateway.call(who, tool, arguments)).as_dict()

    def plan(self, who: Principal = OPERATOR, **more: Any) -> dict[str, Any]:
        given = {**STOP, "targets": ["web-01"], "dry_run": True, **more}
        found: dict[str, Any] = self.call("manage_service", given, who)["results"][0]["data"]
        return found

    def apply(self, id: str, who: Principal = OPERATOR, **more: Any) -> dict[str, Any]:
        return self.call("apply_plan", {"plan_id": id, **more}, who)

    @property
    def done(self) -> list[str]:
        return [one for host in self.hosts.values() for one in host.done]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def only(reply: dict[str, Any]) -> str:
    """The one code of a reply."""
    if "error" in reply:
        return str(reply["error"]["code"])
    (code,) = set(codes(reply).values())
    return code


# --- What a dry run answers ------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_change_and_how_it_is_undone(scene: Scene) -> None:
    found = scene.plan()
    assert (found["dry_run"], found["decision"]) == (True, "allow") and len(found["plan_id"]) == 64
    assert found["plan"] == {
        "changes": [{"what": "unit nginx.service", "field": "active", "before": "active", "after": "inactive"}],
        "inverse": {"tool": "manage_service", "arguments": {"action": "start", "service_name": "nginx.service"}},
    }
    assert scene.done == [] and all(permit.rehearsal for permit in scene.permits)


def test_the_same_world_gives_the_same_plan_and_another_world_another(scene: Scene) -> None:
    first = scene.plan()["plan_id"]
    assert scene.plan()["plan_id"] == first == scene.plan(operator("local:7"))["plan_id"]
    others = {scene.plan(action="restart")["plan_id"], scene.plan(targets=["web-02"])["plan_id"]}
    scene.hosts["web-01"].pid = 8
    others.add(scene.plan()["plan_id"])
    scene.gateway.policy = replace(UNTAINTED, version="another")
    others.add(scene.plan()["plan_id"])
    assert len(others | {first}) == 5


def test_what_would_be_denied_is_not_looked_at(scene: Scene) -> None:
    found = scene.plan(principal("readonly"))
    assert found["decision"] == "deny" and "plan_id" not in found and scene.permits == []


def test_what_can_not_be_planned_says_why(scene: Scene) -> None:
    async def fails(*argv: str, **_: Any) -> Output:
        return Output(argv, 0, "Id=x\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n", "")

    scene.hosts["web-01"].run = fails  # type: ignore[method-assign]
    reply = scene.call("manage_service", {**STOP, "targets": "*", "dry_run": True})
    assert codes(reply) == {"web-01": "not_found", "web-02": "ok"}
    assert reply["results"][0]["error"]["details"]["decision"] == "allow"
    assert only(scene.apply(reply["results"][1]["data"]["plan_id"])) == "ok"
    assert scene.hosts["web-02"].done == ["stop"] and scene.hosts["web-01"].done == []


def test_a_use_that_reads_has_no_plan(tmp_path: Path) -> None:
    def never(permit: Permit, name: str) -> Any:
        raise AssertionError("opened")

    gateway = fake_gateway(tmp_path, never, target("d", "docker"))
    arguments = {"action": "logs", "name_or_id": "db", "target": "d", "dry_run": True}
    (result,) = run(gateway.call(OPERATOR, "manage_container", arguments)).as_dict()["results"]
    assert result["data"] == {"dry_run": True, "decision": "allow"}


# --- apply_plan ------------------------------------------------------------------------------------------------------


def test_a_plan_is_carried_out_once(scene: Scene) -> None:
    id = scene.plan(targets="*")["plan_id"]
    reply = scene.apply(id)
    assert codes(reply) == {"web-01": "ok", "web-02": "ok"} and scene.done == ["stop", "stop"]
    assert reply["results"][0]["data"]["active"] == "inactive"
    assert only(scene.apply(id)) == "not_found" and scene.done == ["stop", "stop"]


def test_every_record_of_it_names_the_plan_and_the_planned_tool(scene: Scene) -> None:
    id = scene.plan()["plan_id"]
    scene.apply(id)
    told = [(one["phase"], one["tool"], one.get("dry_run", False), one.get("plan_id")) for one in records(scene.folder)]
    service = "manage_service"
    assert told == [
        ("intent", service, True, None), ("outcome", service, True, id),
        ("intent", service, False, id), ("outcome", service, False, id),
    ]  # fmt: skip
    assert records(scene.folder)[2]["arguments"] == {**STOP, "targets": ["web-01"]}


def moves_pid(scene: Scene) -> None:
    scene.hosts["web-02"].pid = 9


def moves_state(scene: Scene) -> None:
    scene.hosts["web-02"].active = "failed"


def moves_policy(scene: Scene) -> None:
    scene.gateway.policy = replace(UNTAINTED, version="another")


def moves_targets(scene: Scene) -> None:
    scene.gateway.replace_registry(replace(scene.gateway.registry, version="another"))


def goes_away(scene: Scene) -> None:
    async def fails(*argv: str, **_: Any) -> Output:
        return Output(argv, 1, "", "System has not been booted with systemd")

    scene.hosts["web-02"].run = fails  # type: ignore[method-assign]


MOVES: dict[Callable[[Scene], None], dict[str, Any]] = {
    moves_pid: {"target": "web-02", "name": "main_pid", "was": "7", "is": "9"},
    moves_state: {"target": "web-02", "name": "active", "was": "active", "is": "failed"},
    moves_policy: {"target": "gateway", "name": "policy", "was": UNTAINTED.version, "is": "another"},
    moves_targets: {"target": "gateway", "name": "registry", "was": "built-in", "is": "another"},
    goes_away: {"target": "web-02", "name": "plan", "was": "made", "is": "unsupported"},
}


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_when_the_world_has_moved_nothing_runs_anywhere(scene: Scene, move: Callable[[Scene], None]) -> None:
    id = scene.plan(targets="*")["plan_id"]
    move(scene)
    reply = scene.apply(id)
    assert only(reply) == "precondition_failed" and scene.done == []
    assert reply["results"][0]["error"]["details"]["moved"] == [MOVES[move]]


def test_a_plan_that_did_not_run_is_not_used_up(scene: Scene) -> None:
    id = scene.plan()["plan_id"]
    scene.hosts["web-01"].pid = 9
    assert only(scene.apply(id)) == "precondition_failed"
    scene.hosts["web-01"].pid = 7
    assert scene.apply(id, dry_run=True)["results"][0]["data"]["plan_id"] == id
    assert only(scene.apply(id)) == "ok" and scene.done == ["stop"]


def test_a_plan_is_nobody_elses_and_not_for_ever(scene: Scene) -> None:
    id = scene.plan()["plan_id"]
    assert only(scene.apply(id, operator("local:7"))) == "not_found"
    assert only(scene.apply("0" * 64)) == "not_found" and only(scene.apply("../x")) == "invalid_arguments"
    scene.now += LIFETIME + 1
    assert only(scene.apply(id)) == "not_found" and scene.done == []


def test_a_plan_is_no_right(scene: Scene) -> None:
    """Rights are those of whoever applies it, when they do."""
    id = scene.plan(principal("service:write"))["plan_id"]
    assert only(scene.apply(id, principal("container:write"))) == "scope_missing"
    assert only(scene.apply(id, principal("readonly"))) == "scope_missing"
    assert scene.done == []
    assert only(scene.apply(id, principal("service:write"))) == "ok"


def test_of_many_who_apply_it_at_once_one_does(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["systemmanager.policy.rules.rate"], "PER_MINUTE", dict.fromkeys(Risk, 1000))
    id = scene.plan()["plan_id"]

    async def all_at_once() -> list[str]:
        calls = (scene.gateway.call(OPERATOR, "apply_plan", {"plan_id": id}) for _ in range(32))
        return [only(reply.as_dict()) for reply in await asyncio.gather(*calls)]

    found = run(all_at_once())
    assert scene.done == ["stop"] and found.count("ok") == 1
    assert set(found) <= {"ok", "not_found", "precondition_failed", "busy"}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_made_up_approval_takes_no_call_back_from_the_rate(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """Only a call that was counted when it asked is not counted again; this one needs nobody's yes."""
    monkeypatch.setattr(sys.modules["systemmanager.policy.rules.rate"], "PER_MINUTE", dict.fromkeys(Risk, 4))
    for _ in range(2):
        scene.hosts["web-01"].active = "active"
        assert only(scene.apply(scene.plan()["plan_id"], approval_id="0" * 16, dry_run=dry_run)) == "ok"
    assert scene.plan()["decision"] == "deny"


# --- The store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[PlanStore]:
    yield PlanStore(tmp_path / "plans.sqlite")


PLAN = Kept("1" * 64, "manage_service", {"password": "hunter2-hunter2"}, {"targets": {}})


def test_a_used_plan_leaves_no_arguments_behind(kept: PlanStore, tmp_path: Path) -> None:
    path = tmp_path / "plans.sqlite"
    kept.keep("ann", PLAN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and b"hunter2" in path.read_bytes()
    assert kept.claim(PLAN.id, "ann") and b"hunter2" not in path.read_bytes()
    assert not kept.claim(PLAN.id, "ann") and kept.find(PLAN.id, "ann") is None
    assert kept.basis(PLAN.id, "ann") == PLAN.basis


def test_a_late_plan_can_neither_be_read_nor_used(tmp_path: Path) -> None:
    now = [1_000_000.0]
    store = PlanStore(tmp_path / "plans.sqlite", lambda: now[0])
    store.keep("ann", PLAN)
    assert store.find(PLAN.id, "ann") == PLAN and store.find(PLAN.id, "bob") is None
    now[0] += LIFETIME
    assert store.find(PLAN.id, "ann") is None and not store.claim(PLAN.id, "ann")
    store.keep("bob", PLAN)
    assert (tmp_path / "plans.sqlite").read_bytes().count(b"hunter2-hunter2") == 1, (
        "what is late is overwritten by the next"
    )


def test_the_oldest_plans_of_one_subject_make_room(kept: PlanStore) -> None:
    ids = [f"{number:064x}" for number in range(205)]
    for id in ids:
        kept.keep("ann", replace(PLAN, id=id))
    kept.keep("bob", PLAN)
    assert [id for id in ids if kept.find(id, "ann")] == ids[5:] and kept.find(PLAN.id, "bob") == PLAN


# --- Approvals -------------------------------------------------------------------------------------------------------


class Asking(Scene):
    """The same where policy.yaml wants a person's yes to stop a service."""

    def __init__(self, folder: Path) -> None:
        demands = Approvals(require=(Demand(frozenset({Risk.HIGH})),))
        super().__init__(folder, policy=replace(UNTAINTED, approvals=demands))
        self.gateway.desk = Desk(ApprovalStore(folder / "approvals.sqlite", lambda: self.now), self.gateway.journal)

    def stop(self, **more: Any) -> dict[str, Any]:
        return self.call("manage_service", {**STOP, "targets": "*", **more}, CLAUDE)

    def answer(self, reply: dict[str, Any]) -> str:
        """Say yes; answers the approval's id."""
        id = str(reply["results"][0]["error"]["details"]["approval_id"])
        assert self.gateway.desk is not None
        run(self.gateway.desk.answer(id, "ann@example.com", True, "operator"))
        return id


CLAUDE = principal("admin", subject="claude")


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    return Asking(tmp_path)


def test_a_person_is_asked_with_the_plan(asking: Asking) -> None:
    reply = asking.stop()
    assert only(reply) == "approval_required" and asking.done == []
    assert asking.gateway.desk is not None
    (asked,) = run(asking.gateway.desk.all())
    plan = asked.question["plan"]
    assert plan["plan_id"] == asking.plan(CLAUDE, targets="*")["plan_id"]
    assert plan["plan_id"] == reply["results"][0]["error"]["details"]["plan_id"]
    assert list(lines_of_all(plan)) == [
        "~ unit nginx.service, active: active -> inactive",
        "  back: manage_service action=start service_name=nginx.service",
        f"  plan {plan['plan_id']}",
    ]
    assert plan["groups"][0]["targets"] == ["web-01", "web-02"]
    assert "~ unit nginx.service, active: active -> inactive" in question(asked)


def test_a_yes_is_to_the_world_that_was_shown(asking: Asking) -> None:
    id = asking.answer(asking.stop())
    asking.hosts["web-02"].pid = 9
    reply = asking.stop(approval_id=id)
    assert only(reply) == "precondition_failed" and asking.done == []
    moved = [{"target": "web-02", "name": "main_pid", "was": "7", "is": "9"}]
    assert reply["results"][0]["error"]["details"]["moved"] == moved
    asking.hosts["web-02"].pid = 7
    assert only(asking.stop(approval_id=id)) == "ok", "it counts again when all is as it was shown"
    assert asking.done == ["stop", "stop"] and only(asking.stop(approval_id=id)) != "ok"


def test_another_call_is_no_moved_world(asking: Asking) -> None:
    id = asking.answer(asking.stop())
    assert only(asking.stop(approval_id=id, action="restart")) == "approval_refused"


def test_who_is_asked_sees_the_waves_and_says_yes_to_those(asking: Asking) -> None:
    id = asking.answer(asking.stop(strategy={"batch": "1,100%", "pause": 5}))
    assert asking.gateway.desk is not None
    (asked,) = run(asking.gateway.desk.all())
    assert "in waves: 1,100%, 5 s between them, the first failure stops it" in question(asked)
    assert only(asking.stop(strategy={"batch": "100%"}, approval_id=id)) == "approval_refused"
    assert only(asking.stop(approval_id=id)) == "approval_refused" and asking.done == []


def test_a_plan_that_needs_a_yes_is_carried_out_with_it(asking: Asking) -> None:
    plan_id = asking.plan(CLAUDE, targets="*")["plan_id"]
    id = asking.answer(asking.apply(plan_id, CLAUDE))
    assert asking.done == []
    assert only(asking.apply(plan_id, CLAUDE, approval_id=id)) == "ok" and asking.done == ["stop", "stop"]
    last = records(asking.folder)[-1]
    assert (last["approved_by"], last["plan_id"]) == ("ann@example.com", plan_id)


def test_who_sits_at_the_terminal_is_asked_with_the_plan_and_it_is_read_again(asking: Asking) -> None:
    seen: list[Any] = []

    async def approve(requests: Any) -> str:
        seen.append(requests[0].plan)
        asking.hosts["web-02"].pid = 9
        return "ann"

    arguments = {**STOP, "targets": "*"}
    reply = run(asking.gateway.call(OPERATOR, "manage_service", arguments, approve=approve)).as_dict()
    assert only(reply) == "precondition_failed" and asking.done == []
    assert seen[0]["groups"][0]["changes"][0]["after"] == "inactive"
