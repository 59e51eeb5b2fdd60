"""Calls that outlast their caller: asked once, ended on purpose only, taken up by the next process."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from systemmanager.gateway import Gateway
from systemmanager.jobs import life, taking
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import KEPT, KEY_KEPT, JobStore
from systemmanager.request import Principal
from tests.support import OPERATOR, fake_gateway, principal, records, run, target

ADMIN = ("docker:admin", "system:admin")


class Engine:
    """A Docker port whose pulls wait until they may end."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []

    async def inspect_image(self, name: str) -> dict[str, Any]:
        return {"Id": "sha256:" + "0" * 64, "Size": 1}

    async def digest_now(self, reference: str) -> str:
        return "sha256:" + "1" * 64

    async def pull(self, image: str, tag: str) -> dict[str, Any]:
        self.begun.append(image)
        await self.may_end.wait()
        self.ended.append(image)
        return {"Id": "sha256:" + "1" * 64, "Size": 1, "RepoDigests": []}


class Scene:
    """One gateway with jobs after the other, over the same state folder and engine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.engine, self.now = folder, Engine(), 1000.0
        self.gateway = self.start()

    def start(self) -> Gateway:
        self.jobs = Jobs(JobStore(self.folder / "jobs.sqlite", lambda: self.now), self.folder / "jobs")
        self.jobs.runs = True
        gateway = fake_gateway(
            self.folder, lambda permit, _: self.engine, target("a", "docker"), target("b", "docker"), jobs=self.jobs
        )
        gateway.journal.handed_over = self.jobs.handed_over
        gateway.journal.begin()
        return gateway

    async def call(self, tool: str, who: Principal = OPERATOR, **arguments: Any) -> dict[str, Any]:
        async def approve(_: Sequence[Any]) -> str:
            return "the test"

        return (await self.gateway.call(who, tool, arguments, approve=approve)).as_dict()

    async def pull(self, who: Principal = OPERATOR, **more: Any) -> dict[str, Any]:
        return await self.call("pull_docker_image", who, **{"image_name": "nginx", "target": "a", "wait": 0} | more)

    async def begun(self) -> str:
        """A pull that waits on the engine."""
        id: str = (await self.pull())["job"]["id"]
        while not self.engine.begun:
            await asyncio.sleep(0.005)
        return id

    async def data(self, tool: str, who: Principal = OPERATOR, **arguments: Any) -> dict[str, Any]:
        reply = await self.call(tool, who, **arguments)
        found: dict[str, Any] = reply["results"][0].get("data") or reply["results"][0]["error"]
        return found

    async def ended(self, id: str) -> dict[str, Any]:
        for _ in range(500):
            status = await self.data("job_status", job_id=id)
            if status["state"] != "running":
                return status
            await asyncio.sleep(0.01)
        raise AssertionError("the job did not end")


def scene(tmp_path: Path, work: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        made = Scene(tmp_path)
        try:
            await work(made)
        finally:
            await made.jobs.leave()

    run(main())


def balance(folder: Path, tool: str = "pull_docker_image") -> list[tuple[str, str | None]]:
    return [(one["phase"], one.get("code")) for one in records(folder) if one["tool"] == tool]


def test_a_call_that_ends_in_time_answers_as_always_and_is_on_the_list(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        made.engine.may_end.set()
        reply = await made.pull(wait=20)
        assert reply["ok"] and "job" not in reply and reply["results"][0]["data"]["updated"]
        (job,) = (await made.data("list_jobs"))["jobs"]
        assert (job["job_id"], job["state"], job["ended_on"]) == (reply["call_id"], "done", 1)

    scene(tmp_path, work)


def test_a_call_that_takes_longer_answers_with_its_job_and_goes_on(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        reply = await made.pull()
        id = reply["job"]["id"]
        assert reply["ok"] and reply["results"] == [] and id == reply["call_id"]
        assert reply["job"] | {"state": "running", "done": 0, "of": 1} == reply["job"]
        assert (await made.data("job_status", job_id=id))["state"] == "running"
        made.engine.may_end.set()
        status = await made.ended(id)
        assert status["state"] == "done" and status["results"][0]["data"]["updated"]
        assert status["arguments"]["image_name"] == "nginx"

    scene(tmp_path, work)
    assert balance(tmp_path) == [("intent", None), ("outcome", "ok")]


def test_whoever_goes_away_does_not_take_the_job_along(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        waiting = asyncio.create_task(made.pull(wait=60))
        while not made.engine.begun:
            await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait([waiting])
        (job,) = (await made.data("list_jobs", state="running"))["jobs"]
        made.engine.may_end.set()
        assert (await made.ended(job["job_id"]))["state"] == "done"

    scene(tmp_path, work)
    assert balance(tmp_path) == [("intent", None), ("outcome", "ok")]


def test_a_job_is_ended_by_job_cancel(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        id = await made.begun()
        status = await made.data("job_cancel", job_id=id)
        assert status["state"] == "cancelled" and status["results"][0]["error"]["code"] == "cancelled"
        assert made.engine.ended == []
        assert (await made.data("job_cancel", job_id=id))["state"] == "cancelled"

    scene(tmp_path, work)
    assert balance(tmp_path) == [("intent", None), ("outcome", "cancelled")]


def test_another_process_ends_a_job_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "LOOK_EVERY", 0.01)

    async def work(made: Scene) -> None:
        id = (await made.pull())["job"]["id"]
        watching = asyncio.create_task(made.jobs.watch())
        other = Jobs(JobStore(tmp_path / "jobs.sqlite"), tmp_path / "jobs")
        await other.cancel(id)
        assert (await made.ended(id))["state"] == "cancelled"
        watching.cancel()
        await asyncio.wait([watching])

    scene(tmp_path, work)


def test_what_ended_on_one_target_is_seen_while_another_runs(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        reply = await made.call(
            "pull_docker_image", principal(*ADMIN, targets="a"), image_name="nginx", targets=["a", "b"], wait=0
        )
        made.engine.may_end.set()
        status = await made.ended(reply["call_id"])
        assert {one["target"]: one["ok"] for one in status["results"]} == {"a": True, "b": False}
        assert status["state"] == "failed"

    scene(tmp_path, work)


# --- once ------------------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_job(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        many = [made.pull(idempotency_key="k1") for _ in range(32)]
        replies = await asyncio.gather(*many)
        assert len({reply["call_id"] for reply in replies}) == 1
        while not made.engine.begun:
            await asyncio.sleep(0.005)
        assert len(made.engine.begun) == 1
        made.engine.may_end.set()
        again = await made.pull(idempotency_key="k1", wait=20)
        assert again["ok"] and again["results"][0]["data"]["updated"] and "job" not in again
        assert len(made.engine.begun) == 1
        made.gateway = made.start()
        assert (await made.pull(idempotency_key="k1"))["call_id"] == again["call_id"]
        assert len(made.engine.begun) == 1

    scene(tmp_path, work)
    assert len([one for one in balance(tmp_path) if one[0] == "intent"]) == 1
    assert balance(tmp_path).count(("refused", "already_asked")) == 33


def test_a_key_is_its_subjects_own_and_stands_for_one_call(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        made.engine.may_end.set()
        await made.pull(idempotency_key="k1", wait=20)
        other = await made.pull(idempotency_key="k1", image_name="redis")
        assert other["error"]["code"] == "idempotency_conflict"
        assert (await made.pull(principal(*ADMIN), idempotency_key="k1", wait=20))["ok"]
        assert made.engine.begun == ["nginx", "nginx"]
        made.now += KEY_KEPT + 1
        await made.pull(idempotency_key="k1", wait=20)
        assert len(made.engine.begun) == 3

    scene(tmp_path, work)


def test_a_call_that_is_refused_leaves_its_key_free(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        nobody = principal("system:read")
        assert (await made.pull(nobody, idempotency_key="k1"))["results"][0]["error"]["code"] != "ok"
        assert (await made.data("list_jobs", nobody))["jobs"] == []
        made.engine.may_end.set()
        rich = Principal(nobody.subject, nobody.kind, principal(*ADMIN).grants, nobody.verified_by)
        assert (await made.pull(rich, idempotency_key="k1", wait=20))["ok"]

    scene(tmp_path, work)


def test_a_dry_run_is_no_job(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        await made.pull(dry_run=True, idempotency_key="k1")
        assert (await made.data("list_jobs"))["jobs"] == [] and made.engine.begun == []

    scene(tmp_path, work)


# --- whose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["job_status", "job_output", "job_cancel"])
def test_a_job_is_seen_by_whoever_asked_for_it_and_by_the_operator(tmp_path: Path, tool: str) -> None:
    async def work(made: Scene) -> None:
        mine, other = principal(*ADMIN, subject="ann"), principal(*ADMIN, subject="bob")
        id = (await made.pull(mine))["job"]["id"]
        assert (await made.data(tool, other, job_id=id))["code"] == "not_found"
        assert (await made.data("list_jobs", other))["total"] == 0
        assert made.jobs.store.one(id).state == "running"  # type: ignore[union-attr]
        assert (await made.data(tool, mine, job_id=id))["job_id"] == id
        assert (await made.data(tool, job_id=id))["job_id"] == id

    scene(tmp_path, work)


def test_one_subject_may_not_have_any_number_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "MOST_JOBS", 2)

    async def work(made: Scene) -> None:
        found = [await made.pull(principal(*ADMIN, subject="ann")) for _ in range(3)]
        assert [one.get("error", {}).get("code") for one in found] == [None, None, "busy"]
        assert (await made.pull(principal(*ADMIN, subject="bob")))["ok"]

    scene(tmp_path, work)


def test_without_a_place_to_write_them_down_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def work(made: Scene) -> None:
        monkeypatch.setattr(made.jobs.store, "begin", full)
        reply = await made.pull()
        assert reply["error"]["code"] == "jobs_unavailable" and made.engine.begun == []

    scene(tmp_path, work)
    assert balance(tmp_path) == [("refused", "jobs_unavailable")]


# --- from one process to the next ------------------------------------------------------------------------------------


async def taken_up(made: Scene) -> None:
    made.gateway = made.start()
    await made.jobs.take_up(lambda row, job: taking.take_up(made.gateway, row, job))


def test_a_gateway_that_stops_leaves_its_jobs_to_the_next_one(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        id = await made.begun()
        await made.jobs.leave()
        assert made.jobs.store.one(id).state == "running"  # type: ignore[union-attr]
        made.engine.may_end.set()
        await taken_up(made)
        status = await made.ended(id)
        assert status["state"] == "done" and made.engine.ended == ["nginx"]

    scene(tmp_path, work)
    told = [("intent", None), ("outcome", "handed_over"), ("intent", None), ("outcome", "ok")]
    assert balance(tmp_path) == told


def test_a_job_that_can_not_be_taken_up_says_that_it_was_cut_off(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        id = (await made.pull())["job"]["id"]
        with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
            database.execute("UPDATE job SET tool = 'manage_container', owner = 'gone'")
            database.execute("INSERT INTO kept VALUES (?, 'a', 'begun', 'true')", (id,))
        database.close()
        await taken_up(made)
        status = await made.ended(id)
        assert status["state"] == "interrupted" and status["results"][0]["error"]["code"] == "interrupted"

    scene(tmp_path, work)


def test_a_job_is_decided_anew_when_it_is_taken_up(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        id = await made.begun()
        await made.jobs.leave()
        begun = len(made.engine.begun)
        made.gateway = made.start()
        made.gateway.replace_registry(
            made.gateway.registry.__class__({"a": target("a", "docker", capabilities=["readonly"])})
        )
        await made.jobs.take_up(lambda row, job: taking.take_up(made.gateway, row, job))
        status = await made.ended(id)
        assert status["state"] == "failed" and status["results"][0]["error"]["code"] == "capability_missing"
        assert len(made.engine.begun) == begun

    scene(tmp_path, work)


def test_a_job_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        await made.begun()
        first = made.jobs
        await taken_up(made)
        assert len(made.engine.begun) == 1 and not made.jobs._running
        await first.leave()

    scene(tmp_path, work)


def test_ended_jobs_are_forgotten_after_a_week(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        made.engine.may_end.set()
        await made.pull(wait=20)
        made.now += KEPT + 1
        await made.pull(wait=20)
        assert (await made.data("list_jobs"))["total"] == 1
        assert len(made.jobs.store.all()) == 1

    scene(tmp_path, work)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        assert database.execute("SELECT count(*) FROM result").fetchone() == (1,)
        assert database.execute("SELECT group_concat(asked) FROM job").fetchone() == ("{}",)
    database.close()


# --- output ----------------------------------------------------------------------------------------------------------


def test_output_is_read_from_a_cursor_on_and_holds_no_half_secret(tmp_path: Path) -> None:
    async def work(made: Scene) -> None:
        id = (await made.pull())["job"]["id"]
        job = made.jobs._running[id]
        following = await job.following("a")
        following.heard("first line\npassword=hun")
        await job.flush()
        found = await made.data("job_output", job_id=id)
        assert "first line" in found["output"] and "hun" not in found["output"] and found["next"] == str(found["total"])
        following.heard("ter2\nlast")
        await job.flush()
        more = await made.data("job_output", job_id=id, cursor=found["next"])
        assert "first" not in more["output"] and "hunter2" not in more["output"] and "password=" in more["output"]
        assert more["output"].startswith("<<untrusted ")
        made.engine.may_end.set()
        await made.ended(id)
        assert "last" in (await made.data("job_output", job_id=id, cursor=more["next"]))["output"]
        assert (await made.data("job_output", job_id=id, on="b"))["code"] == "not_found"

    scene(tmp_path, work)
