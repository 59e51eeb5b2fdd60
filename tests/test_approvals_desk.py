"""Calls that need a person's yes, through the gateway: a canary counts what was done."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from systemmanager.approvals.desk import Desk
from systemmanager.approvals.question import question_of
from systemmanager.approvals.store import LIFETIME, MOST_PENDING, ApprovalStore
from systemmanager.errors import ApprovalRefused
from systemmanager.freezing import Freezer
from systemmanager.gateway import Gateway
from systemmanager.journal import Call
from systemmanager.operation import Risk
from systemmanager.policyfile import Policy
from systemmanager.request import Principal, Request
from tests.fakes import Engine, codes
from tests.support import fake_gateway, principal, records, registry, run, target

PULL = {"targets": ["a"], "image_name": "nginx"}
CLAUDE = principal("admin", subject="claude")


@dataclass
class Scene:
    """A gateway with a desk, a canary behind it, and a clock that stands still."""

    folder: Path

    def __post_init__(self) -> None:
        self.engine, self.now = Engine(), 1_000_000.0
        self.gateway = self.start()

    def start(self) -> Gateway:
        targets, freezer = (target("a", "docker"), target("b", "docker")), Freezer(self.folder)
        gateway = fake_gateway(self.folder, lambda permit, name: self.engine, *targets, freezer=freezer)
        gateway.desk = Desk(ApprovalStore(self.folder / "approvals.sqlite", lambda: self.now), gateway.journal)
        return gateway

    @property
    def desk(self) -> Desk:
        assert self.gateway.desk is not None
        return self.gateway.desk

    async def call(
        self, arguments: dict[str, Any] = PULL, who: Principal = CLAUDE, tool: str = "pull_docker_image", **more: Any
    ) -> dict[str, Any]:
        return (await self.gateway.call(who, tool, {**arguments, **more})).as_dict()

    async def asked(self, **fields: Any) -> str:
        """The id of a new approval request."""
        return str(error(await self.call(**fields))["details"]["approval_id"])

    async def approved(self) -> str:
        id = await self.asked()
        await self.desk.answer(id, "ann@example.com", True, "operator")
        return id


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def error(reply: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = reply["results"][0]["error"]
    return found


def test_the_way_of_a_call_that_needs_a_yes(scene: Scene) -> None:
    async def work() -> None:
        required = error(await scene.call())
        id = required["details"]["approval_id"]
        assert required["code"] == "approval_required" and f"approvals approve {id}" in required["hint"]
        assert len(required["details"].pop("plan_id")) == 64
        assert required["details"] == {
            "approval_id": id, "state": "pending", "expires_in": LIFETIME, "needed": 1, "channels": ["operator"],
        }  # fmt: skip
        assert error(await scene.call(approval_id=id))["code"] == "approval_required"
        await scene.desk.answer(id, "ann@example.com", True, "operator")
        assert "It is approved" in error(await scene.call())["hint"] and scene.engine.pulled == 0
        assert codes(await scene.call(approval_id=id)) == {"a": "ok"} and scene.engine.pulled == 1
        again = error(await scene.call(approval_id=id))
        assert again["code"] == "approval_refused" and "used" in again["message"] and scene.engine.pulled == 1

    run(work())
    told = [(one["tool"], one["subject"]) for one in records(scene.folder) if one["phase"] == "event"]
    assert told == [
        ("approval ask", "claude"), ("approval yes", "ann@example.com"),
        ("approval use", "claude"), ("approval refused", "claude"),
    ]  # fmt: skip
    intents = [one for one in records(scene.folder) if one["phase"] == "intent"]
    assert [one["approved_by"] for one in intents] == ["ann@example.com"]


def test_asking_and_the_approved_call_count_as_one(scene: Scene) -> None:
    """Five critical calls a minute: four changes that a person said yes to leave room for one more to ask."""

    async def work() -> None:
        for number in range(4):
            given = {**PULL, "tag": f"1.{number}"}
            id = await scene.asked(arguments=given)
            await scene.desk.answer(id, "ann@example.com", True, "operator")
            assert codes(await scene.call(given, approval_id=id)) == {"a": "ok"}
        assert error(await scene.call())["code"] == "approval_required"
        assert error(await scene.call())["code"] == "rate_limited", "what nobody said yes to counts each time"

    run(work())


def test_asking_again_and_again_for_the_same_yes_counts_each_time(scene: Scene) -> None:
    async def work() -> None:
        id = await scene.asked()
        codes = [error(await scene.call(approval_id=id))["code"] for _ in range(5)]
        assert codes == ["approval_required"] * 4 + ["rate_limited"]

    run(work())


def test_calls_that_are_approved_at_once_count_each_time(scene: Scene) -> None:
    async def yes(requests: Any) -> str:
        return "ann@example.com"

    async def work() -> None:
        for number in range(6):
            given = {**PULL, "tag": f"2.{number}"}
            reply = await scene.gateway.call(CLAUDE, "pull_docker_image", given, approve=yes)
            assert codes(reply.as_dict()) == {"a": "ok" if number < 5 else "rate_limited"}

    run(work())


Change = Callable[[Scene], Awaitable[dict[str, Any]]]


def _call(**fields: Any) -> Callable[[Scene, str], Awaitable[dict[str, Any]]]:
    async def work(scene: Scene, id: str) -> dict[str, Any]:
        arguments = {**PULL, "approval_id": id, **fields.get("arguments", {})}
        return await scene.call(arguments, **{name: value for name, value in fields.items() if name != "arguments"})

    return work


async def _late(scene: Scene, id: str) -> dict[str, Any]:
    scene.now += LIFETIME
    return await scene.call(approval_id=id)


async def _other_policy(scene: Scene, id: str) -> dict[str, Any]:
    scene.gateway.policy = Policy(version="2")
    return await scene.call(approval_id=id)


async def _other_registry(scene: Scene, id: str) -> dict[str, Any]:
    scene.gateway.replace_registry(registry(target("a", "docker"), target("b", "docker"), version="2"))
    return await scene.call(approval_id=id)


async def _capability_gone(scene: Scene, id: str) -> dict[str, Any]:
    scene.gateway.replace_registry(registry(target("a", "docker", capabilities=["readonly"])))
    return await scene.call(approval_id=id)


REFUSED: dict[str, tuple[Callable[[Scene, str], Awaitable[dict[str, Any]]], str]] = {
    "argument": (_call(arguments={"image_name": "nginx-evil"}), "approval_refused"),
    "argument added": (_call(arguments={"tag": "1.27"}), "approval_refused"),
    "target": (_call(arguments={"targets": ["b"]}), "approval_refused"),
    "target added": (_call(arguments={"targets": ["a", "b"]}), "approval_refused"),
    "tool": (
        lambda scene, id: scene.call(
            {"targets": ["a"], "name_or_id": "nginx"}, tool="update_docker_container", approval_id=id
        ),
        "approval_refused",
    ),
    "other redeemer": (_call(who=principal("admin", subject="mallory")), "approval_refused"),
    "same name, other kind": (_call(who=Principal("claude", "person", CLAUDE.grants, "test")), "approval_refused"),
    "made up": (_call(arguments={"approval_id": "0" * 16}), "approval_refused"),
    "late": (_late, "approval_refused"),
    "policy": (_other_policy, "approval_refused"),
    "registry": (_other_registry, "approval_refused"),
    "capability gone": (_capability_gone, "capability_missing"),
    "role lost": (_call(who=principal("readonly", subject="claude")), "scope_missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_yes_for_one_call_is_none_for_a_changed_one(scene: Scene, name: str) -> None:
    happen, code = REFUSED[name]

    async def work() -> None:
        id = await scene.approved()
        before = len(records(scene.folder))
        assert error(await happen(scene, id))["code"] == code
        decisions = [one for one in records(scene.folder)[before:] if one["phase"] != "event"]
        assert {one["phase"] for one in decisions} == {"refused"} and scene.engine.pulled == 0
        assert scene.desk.store.get(id).state != "used", "a refused try does not use it up"

    run(work())


def test_the_digest_is_over_every_part_of_the_question(scene: Scene) -> None:
    """Each part alone makes another question of it, also where nobody could tell from the others."""
    gateway, raw = scene.gateway, {**PULL, "tag": "1"}
    call = gateway.begin(gateway._entry(CLAUDE, "pull_docker_image", raw), "pull_docker_image", raw, 0.0)
    (one,) = gateway.requests(
        CLAUDE, call.operation, call.arguments, [gateway.registry.targets["a"]], call.registry, call=call
    )

    def by(who: Principal) -> Call:
        return replace(call, entry=replace(call.entry, principal=who))

    others: dict[str, tuple[Call, Request]] = {
        "subject": (by(replace(CLAUDE, subject="other")), one),
        "kind": (by(replace(CLAUDE, kind="person")), one),
        "tool": (replace(call, operation=replace(call.operation, name="update_docker_container")), one),
        "target": (call, replace(one, target=gateway.registry.targets["b"])),
        "argument": (replace(call, arguments={**call.arguments, "tag": "2"}), one),
        "risk": (call, replace(one, access=replace(one.access, risk=Risk.HIGH))),
        "plan": (call, replace(one, plan={"plan_id": "p1"})),
        "policy": (replace(call, policy=replace(call.policy, version="2")), one),
        "registry": (replace(call, registry=registry(version="2")), one),
    }
    digests = {name: question_of(other, [request]).digest for name, (other, request) in others.items()}
    assert question_of(call, [one]).digest == question_of(call, [one]).digest
    assert len({question_of(call, [one]).digest, *digests.values()}) == 1 + len(others), digests


def test_a_race_for_one_yes_has_one_effect(scene: Scene) -> None:
    async def work() -> None:
        id = await scene.approved()
        unlimited = [principal("admin", subject="claude") for _ in range(64)]
        scene.gateway._recent.counts = lambda subject: {}  # type: ignore[method-assign]
        replies = await asyncio.gather(*(scene.call(approval_id=id, who=who) for who in unlimited))
        found = [codes(reply)["a"] for reply in replies]
        assert scene.engine.pulled == 1 and sorted(found) == ["approval_refused"] * 63 + ["ok"]

    run(work())


def test_no_call_runs_in_part_while_a_person_is_asked(scene: Scene) -> None:
    async def work() -> None:
        targets = target("a", "docker"), target("b", "docker", capabilities=["readonly"])
        scene.gateway.replace_registry(registry(*targets))
        reply = await scene.call(targets=["a", "b"])
        assert codes(reply) == {"a": "approval_required", "b": "capability_missing"}
        id = error(reply)["details"]["approval_id"]
        assert scene.desk.store.get(id).question["targets"] == ["a", "b"], "what is shown is the whole call"
        await scene.desk.answer(id, "ann@example.com", True, "operator")
        reply = await scene.call(targets=["a", "b"], approval_id=id)
        assert codes(reply) == {"a": "ok", "b": "capability_missing"} and scene.engine.pulled == 1

    run(work())


def test_a_no_ends_it(scene: Scene) -> None:
    async def work() -> None:
        id = await scene.asked()
        await scene.desk.answer(id, "ann@example.com", False, "operator")
        for more in ({"approval_id": id}, {}):
            refused = error(await scene.call({**PULL, **more}))
            assert refused["code"] == "approval_refused" and scene.engine.pulled == 0

    run(work())


@pytest.mark.parametrize("person", ["claude", "Claude", "claude@example.com"])
def test_nobody_says_yes_to_themselves(scene: Scene, person: str) -> None:
    async def work() -> None:
        id = await scene.asked()
        with pytest.raises(ApprovalRefused, match="can't answer"):
            await scene.desk.answer(id, person, True, "operator")
        assert error(await scene.call(approval_id=id))["code"] == "approval_required"

    run(work())
    assert "approval answer refused" in [one["tool"] for one in records(scene.folder)]


def test_a_flood_of_requests_is_refused(scene: Scene) -> None:
    async def work() -> None:
        scene.gateway._recent.counts = lambda subject: {}  # type: ignore[method-assign]
        for number in range(MOST_PENDING):
            assert error(await scene.call(image_name=f"nginx{number}"))["code"] == "approval_required"
        refused = error(await scene.call(image_name="one-too-many"))
        assert refused["code"] == "approval_refused" and "waiting already" in refused["message"]
        assert error(await scene.call(who=principal("admin", subject="other")))["code"] == "approval_required"

    run(work())


def test_the_store_holds_no_secret_and_still_tells_them_apart(scene: Scene) -> None:
    async def work() -> None:
        scene.gateway.secrets = frozenset({"registry-key-0123456789"})
        scene.gateway.replace_registry(scene.gateway.registry)
        id = await scene.asked(image_name="registry-key-0123456789/nginx")
        assert "[redacted]" in json.dumps(scene.desk.store.get(id).question["arguments"])
        scene.gateway.secrets = frozenset({"registry-key-0123456789", "registry-key-9876543210"})
        scene.gateway.replace_registry(scene.gateway.registry)
        assert await scene.asked(image_name="registry-key-9876543210/nginx") != id

    run(work())
    held = b"".join(path.read_bytes() for path in scene.folder.glob("approvals.sqlite*"))
    assert b"0123456789" not in held and b"9876543210" not in held


def test_a_yes_survives_a_restart_and_its_use_does_too(scene: Scene) -> None:
    async def work() -> None:
        id = await scene.approved()
        scene.gateway = scene.start()
        assert codes(await scene.call(approval_id=id)) == {"a": "ok"}
        scene.gateway = scene.start()
        assert codes(await scene.call(approval_id=id)) == {"a": "approval_refused"} and scene.engine.pulled == 1

    run(work())


def test_an_approval_outlives_a_call_that_never_ran_for_want_of_the_log(scene: Scene) -> None:
    log, aside = scene.folder / "audit.jsonl", scene.folder / "aside"

    async def work() -> None:
        id = await scene.approved()
        scene.gateway._recent.counts = lambda subject: {}  # type: ignore[method-assign]
        log.rename(aside)
        log.mkdir()
        replies = await asyncio.gather(*(scene.call(approval_id=id) for _ in range(16)))
        told = {one["error"]["code"] for one in replies}
        assert told == {"audit_unavailable"} and scene.engine.pulled == 0
        assert scene.desk.store.get(id).state == "approved"
        log.rmdir()
        aside.rename(log)
        await scene.gateway.journal.tend()
        done = await asyncio.gather(*(scene.call(approval_id=id) for _ in range(16)))
        assert sorted(codes(one)["a"] for one in done) == ["approval_refused"] * 15 + ["ok"]
        assert scene.engine.pulled == 1

    run(work())
    given_back = [one for one in records(scene.folder) if one["tool"] == "approval given back"]
    assert given_back and given_back[0]["subject"] == "claude" and "nothing ran" in given_back[0]["arguments"]["why"]


def test_a_call_that_did_not_use_an_approval_up_gives_none_back(scene: Scene) -> None:
    """Another one has used it, and had its effect."""
    log, aside = scene.folder / "audit.jsonl", scene.folder / "aside"

    async def work() -> None:
        id = await scene.approved()
        assert codes(await scene.call(approval_id=id)) == {"a": "ok"}
        log.rename(aside)
        log.mkdir()
        assert (await scene.call(approval_id=id))["error"]["code"] == "audit_unavailable"
        assert scene.desk.store.get(id).state == "used"
        log.rmdir()
        aside.rename(log)
        assert error(await scene.call(approval_id=id))["code"] == "approval_refused" and scene.engine.pulled == 1

    run(work())


def test_an_approval_that_can_not_be_given_back_stays_used(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    log = scene.folder / "audit.jsonl"

    def full(id: str) -> None:
        raise OSError("No space left on device")

    async def work() -> None:
        id = await scene.approved()
        monkeypatch.setattr(scene.desk.store, "give_back", full)
        log.unlink()
        log.mkdir()
        assert (await scene.call(approval_id=id))["error"]["code"] == "audit_unavailable"
        assert scene.desk.store.get(id).state == "used" and scene.engine.pulled == 0

    run(work())


def test_a_store_that_fails_lets_nothing_through(scene: Scene) -> None:
    async def work() -> None:
        id = await scene.approved()
        (scene.folder / "approvals.sqlite").write_bytes(b"no database at all" * 100)
        for more in ({"approval_id": id}, {}):
            refused = error(await scene.call({**PULL, **more}))
            assert (refused["code"], refused["retryable"], scene.engine.pulled) == ("approval_refused", True, 0)

    run(work())


def test_what_cannot_be_shown_whole_cannot_be_approved(scene: Scene) -> None:
    many = [target(f"engine-with-quite-a-long-name-{number}", "docker") for number in range(2000)]
    scene.gateway.replace_registry(registry(*many))
    refused = error(run(scene.call(targets=["*"])))
    assert refused["code"] == "approval_refused" and "too large" in refused["message"]
