"""Calls that wait for a person: they go on by themselves, and everything is decided anew then."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from systemmanager.approvals.desk import MOST_WAITING_EACH, Desk
from systemmanager.approvals.store import ApprovalStore
from systemmanager.freezing import change
from systemmanager.policyfile import Policy
from tests.fakes import codes, phases
from tests.support import registry, run, target
from tests.test_approvals_desk import CLAUDE, PULL, Scene, error


async def pending(scene: Scene) -> str:
    """The id of the request that a call waits for, once it does."""
    deadline = time.monotonic() + 5
    while not scene.desk._waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    return scene.desk.store.all("pending")[0].id


Happen = Callable[[Scene, str], Awaitable[Any]]


async def _yes(scene: Scene, id: str) -> None:
    await scene.desk.answer(id, "ann@example.com", True, "operator")


async def _by_another_process(scene: Scene, id: str) -> None:
    other = Desk(ApprovalStore(scene.folder / "approvals.sqlite", lambda: scene.now), scene.gateway.journal)
    await other.answer(id, "ann@example.com", True, "operator")


async def _no(scene: Scene, id: str) -> None:
    await scene.desk.answer(id, "ann@example.com", False, "operator")


async def _policy(scene: Scene, id: str) -> None:
    scene.gateway.policy = Policy(version="2")
    await _yes(scene, id)


async def _targets(scene: Scene, id: str) -> None:
    scene.gateway.replace_registry(registry(target("a", "docker"), version="2"))
    await _yes(scene, id)


async def _capability(scene: Scene, id: str) -> None:
    scene.gateway.replace_registry(registry(target("a", "docker", capabilities=["readonly"])))
    await _yes(scene, id)


async def _frozen(scene: Scene, id: str) -> None:
    await asyncio.to_thread(change, scene.folder, "x", freeze=True, targets=(), all=True)
    await _yes(scene, id)


async def _late(scene: Scene, id: str) -> None:
    scene.now += 3600


HAPPENS: dict[str, tuple[Happen, str]] = {
    "a yes": (_yes, "ok"),
    "a yes by another process": (_by_another_process, "ok"),
    "a no": (_no, "approval_refused"),
    "a yes under another policy": (_policy, "approval_refused"),
    "a yes for other targets": (_targets, "approval_refused"),
    "a yes for what the target lost": (_capability, "capability_missing"),
    "a yes in a freeze": (_frozen, "frozen"),
    "it expires": (_late, "approval_required"),
}


@pytest.mark.parametrize("name", HAPPENS)
def test_a_waiting_call_is_decided_anew_when_something_happens(tmp_path: Path, name: str) -> None:
    happen, code = HAPPENS[name]
    scene = Scene(tmp_path)

    async def work() -> None:
        call = asyncio.create_task(scene.call(approval_wait=30))
        await happen(scene, await pending(scene))
        assert codes(await asyncio.wait_for(call, 5)) == {"a": code}
        assert scene.engine.pulled == (1 if code == "ok" else 0) and scene.desk._waiting == []

    run(work())
    assert [phase for phase, *_ in phases(tmp_path) if phase in ("intent", "refused")] == [
        "intent" if code == "ok" else "refused"
    ], "one decision record"


@pytest.mark.parametrize("asks_first", [False, True])
def test_a_call_that_waited_for_its_yes_counts_once(tmp_path: Path, asks_first: bool) -> None:
    """Five critical calls a minute: four that waited leave room for one more."""
    scene = Scene(tmp_path)

    async def work() -> None:
        for number in range(4):
            given = {**PULL, "tag": f"1.{number}", "approval_wait": 30}
            if asks_first:
                given["approval_id"] = error(await scene.call({**given, "approval_wait": 0}))["details"]["approval_id"]
            call = asyncio.create_task(scene.call(given))
            await _yes(scene, await pending(scene))
            assert codes(await asyncio.wait_for(call, 5)) == {"a": "ok"}
        assert [error(await scene.call())["code"] for _ in range(2)] == ["approval_required", "rate_limited"]

    run(work())


def test_nobody_answers_in_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    reply = run(scene.call(approval_wait=0.05))
    assert error(reply)["code"] == "approval_required" and error(reply)["details"]["state"] == "pending"


def test_whoever_waits_hears_of_it_and_no_number_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("systemmanager.approvals.desk.TELL_EVERY", 0.05)
    monkeypatch.setattr("systemmanager.approvals.desk.LOOK", 0.02)
    scene, told = Scene(tmp_path), list[tuple[float, str]]()

    async def progress(done: float, total: int, message: str) -> None:
        told.append((done, message))

    async def work() -> None:
        arguments = {**PULL, "targets": ["a", "b"], "approval_wait": 30}
        call = asyncio.create_task(scene.gateway.call(CLAUDE, "pull_docker_image", arguments, progress=progress))
        id = await pending(scene)
        while len(told) < 3:
            await asyncio.sleep(0.01)
        await scene.desk.answer(id, "ann@example.com", True, "operator")
        assert (await call).ok and id in told[0][1]

    run(work())
    numbers = [done for done, _ in told]
    assert numbers == sorted(set(numbers)) and told[-1][0] == 2


def test_only_so_many_calls_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.gateway._recent.counts = lambda subject: {}  # type: ignore[method-assign]

    async def work() -> None:
        waiting = [asyncio.create_task(scene.call(approval_wait=30)) for _ in range(MOST_WAITING_EACH)]
        while len(scene.desk._waiting) < MOST_WAITING_EACH:
            await asyncio.sleep(0.005)
        assert error(await asyncio.wait_for(scene.call(approval_wait=30), 5))["code"] == "approval_required"
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        assert scene.desk._waiting == []

    run(work())
    assert [one[2] for one in phases(tmp_path)].count("cancelled") == MOST_WAITING_EACH
