"""What policy.yaml and targets.yaml say about approvals, in the gateway: how many people, which ones, by which way."""

import json
from pathlib import Path
from typing import Any

import pytest

from systemmanager.approvals.answers import NoAnswer
from systemmanager.approvals.store import Asked
from systemmanager.approvals.webhook import Webhook
from systemmanager.errors import ApprovalRefused
from systemmanager.operation import Risk
from systemmanager.policy.demands import Approvals, Channel, Demand
from systemmanager.policyfile import Policy
from tests.fakes import codes
from tests.support import OPERATOR, principal, records, registry, run, target
from tests.test_approvals_desk import PULL, Scene, error


def scene_with(folder: Path, *, dual: bool = False, **fields: Any) -> Scene:
    scene = Scene(folder)
    scene.desk.rules = lambda: scene.gateway.policy.approvals
    scene.gateway.policy = Policy(approvals=Approvals(**fields))
    ids = {"a": dual, "b": False}
    scene.gateway.replace_registry(
        registry(*(target(id, "docker", constraints={"dual_approval": two}) for id, two in ids.items()))
    )
    return scene


def test_two_people_let_a_dual_target_through_and_fewer_do_not(tmp_path: Path) -> None:
    scene = scene_with(tmp_path, dual=True)

    async def work() -> None:
        required = error(await scene.call(targets=["a", "b"]))["details"]
        assert required["needed"] == 2
        id = required["approval_id"]
        await scene.desk.answer(id, "local:4242", True, "operator")
        for person in ("local:4242", "Claude", "claude@example.com"):
            with pytest.raises(ApprovalRefused):
                await scene.desk.answer(id, person, True, "webhook")
        assert error(await scene.call(targets=["a", "b"], approval_id=id))["code"] == "approval_required"
        await scene.desk.answer(id, "ann@example.com", True, "webhook")
        assert codes(await scene.call(targets=["a", "b"], approval_id=id)) == {"a": "ok", "b": "ok"}
        assert scene.engine.pulled == 2

    run(work())
    by = {one["approved_by"] for one in records(tmp_path) if one["phase"] == "intent"}
    assert by == {"local:4242 and ann@example.com"}


@pytest.mark.parametrize("second", ["Ann", "ann@other.example", "ann+2@example.com", "ANN@EXAMPLE.COM"])
def test_one_person_under_two_names_is_one_person(tmp_path: Path, second: str) -> None:
    scene = scene_with(tmp_path, dual=True)

    async def work() -> None:
        id = await scene.asked()
        await scene.desk.answer(id, "ann@example.com", True, "webhook")
        with pytest.raises(ApprovalRefused, match="different people"):
            await scene.desk.answer(id, second, True, "operator")
        assert error(await scene.call(approval_id=id))["code"] == "approval_required" and scene.engine.pulled == 0

    run(work())


def test_a_yes_at_the_terminal_is_one_person_too(tmp_path: Path) -> None:
    scene = scene_with(tmp_path, dual=True)

    async def approve(requests: Any) -> str:
        return "local:0 at the terminal"

    reply = run(scene.gateway.call(OPERATOR, "pull_docker_image", PULL, approve=approve)).as_dict()
    assert error(reply)["code"] == "approval_required" and scene.engine.pulled == 0
    assert error(reply)["details"]["needed"] == 2


def test_no_at_the_terminal_asks_nobody_else(tmp_path: Path) -> None:
    scene = scene_with(tmp_path)

    async def approve(requests: Any) -> str:
        return ""

    reply = run(scene.gateway.call(OPERATOR, "pull_docker_image", PULL, approve=approve)).as_dict()
    assert error(reply)["code"] == "approval_refused" and scene.desk.store.all() == []


ANSWERS: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "anybody": ({}, "local:4242", "operator", True),
    "named": ({"approvers": ("Ann@example.com",)}, "ann@example.com", "webhook", True),
    "of a named domain": ({"approvers": ("*@example.com",)}, "ann@example.com", "webhook", True),
    "by user name": ({"approvers": ("root",)}, "local:0", "operator", True),
    "by uid": ({"approvers": ("local:0",)}, "local:0", "operator", True),
    "not named": ({"approvers": ("bob@example.com",)}, "ann@example.com", "webhook", False),
    "another domain": ({"approvers": ("*@example.com",)}, "ann@example.com.evil", "webhook", False),
    "a webhook that calls itself root": ({"approvers": ("local:0",)}, "root", "webhook", False),
    "nobody": ({"approvers": ()}, "local:0", "operator", False),
    "no operators": ({"channels": ("webhook",)}, "local:4242", "operator", False),
    "no webhook": ({"channels": ("operator",)}, "ann@example.com", "webhook", False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_who_may_answer(tmp_path: Path, name: str) -> None:
    fields, person, channel, may = ANSWERS[name]
    scene = scene_with(tmp_path, **fields)

    async def work() -> None:
        id = await scene.asked()
        if may:
            await scene.desk.answer(id, person, True, channel)
            assert codes(await scene.call(approval_id=id)) == {"a": "ok"}
            return
        with pytest.raises(ApprovalRefused, match=r"policy\.yaml"):
            await scene.desk.answer(id, person, True, channel)
        assert error(await scene.call(approval_id=id))["code"] == "approval_required" and scene.engine.pulled == 0

    run(work())


@pytest.mark.parametrize(
    ("channels", "wanted"),
    [
        (("webhook", "elicitation", "operator"), ["webhook", "client"]),
        (("elicitation", "webhook"), ["client", "webhook"]),
        (("webhook",), ["webhook"]),
        (("elicitation", "operator"), ["client"]),
        (("operator",), []),
    ],
    ids=lambda value: ", ".join(value) or "none",
)
def test_channels_are_tried_as_policy_names_them(
    tmp_path: Path, channels: tuple[Channel, ...], wanted: list[str]
) -> None:
    scene, tried = scene_with(tmp_path, channels=channels, elicitation=Risk.CRITICAL), list[str]()

    class Hook(Webhook):
        async def tell(self, asked: Asked) -> None:
            tried.append("webhook")
            raise NoAnswer("not now")

    async def elicit(asked: Asked) -> None:
        tried.append("client")

    scene.desk.webhook = Hook("http://127.0.0.1:1/", "secret")
    who = principal("admin", subject="claude")
    reply = run(scene.gateway.call(who, "pull_docker_image", PULL, elicit=elicit)).as_dict()
    assert error(reply)["code"] == "approval_required" and tried == wanted


def test_a_policy_can_demand_what_the_tool_does_not(tmp_path: Path) -> None:
    scene = scene_with(tmp_path, require=(Demand(frozenset({Risk.HIGH}), "a"),))
    arguments = {"name_or_id": "web", "action": "restart"}
    who = principal("admin", subject="claude")

    async def asks(id: str) -> bool:
        reply = (await scene.gateway.call(who, "manage_container", {"target": id, **arguments})).as_dict()
        if error(reply)["code"] == "approval_required":
            assert "policy.yaml requires for high calls on a" in error(reply)["message"]
            return True
        return False

    assert run(asks("a")) and not run(asks("b"))


def test_a_request_lives_as_long_as_policy_says(tmp_path: Path) -> None:
    scene = scene_with(tmp_path, lifetime=60)

    async def work() -> None:
        id = await scene.asked()
        scene.now += 61
        with pytest.raises(ApprovalRefused, match="expired"):
            await scene.desk.answer(id, "ann@example.com", True, "operator")

    run(work())
    told = json.dumps(records(tmp_path)[-1])
    assert "approval answer refused" in told
