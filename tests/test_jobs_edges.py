"""Jobs at their edges: keys, ends, and what two processes make of one."""

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import AuditUnavailable
from systemmanager.jobs import taking
from systemmanager.jobs.job import Job
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import BEGUN, JobStore
from tests.support import principal, run
from tests.test_approvals_desk import CLAUDE, PULL
from tests.test_approvals_desk import Scene as Desk
from tests.test_approvals_wait import pending
from tests.test_jobs import ADMIN, Scene


def test_the_same_key_on_another_target_is_another_call(tmp_path: Path) -> None:
    async def work() -> None:
        made = Scene(tmp_path)
        made.engine.may_end.set()
        await made.pull(idempotency_key="k1", wait=20)
        other = await made.pull(idempotency_key="k1", target="b")
        assert other["error"]["code"] == "idempotency_conflict" and made.engine.begun == ["nginx"]
        await made.jobs.leave()

    run(work())


def test_a_key_does_not_hold_up_its_own_call_that_waits_for_a_person(tmp_path: Path) -> None:
    async def work() -> None:
        made = Desk(tmp_path)
        made.gateway.jobs = Jobs(JobStore(tmp_path / "jobs.sqlite"), tmp_path / "jobs")
        made.gateway.jobs.runs = True
        given = {**PULL, "approval_wait": 30, "idempotency_key": "k1"}
        call = asyncio.create_task(made.gateway.call(CLAUDE, "pull_docker_image", given))
        await made.desk.answer(await pending(made), "ann@example.com", True, "operator")
        reply = (await asyncio.wait_for(call, 10)).as_dict()
        assert reply["results"][0].get("error", {}).get("code") not in ("approval_required", "idempotency_conflict")
        assert [row.key for row in made.gateway.jobs.store.all()] == ["k1"]
        await made.gateway.jobs.leave()

    run(work())


def test_a_job_whose_intent_can_not_be_written_tells_every_target_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        made = Scene(tmp_path)

        async def full(*_: Any) -> None:
            raise AuditUnavailable("the disk is full")

        monkeypatch.setattr(made.gateway.journal, "decided", full)
        reply = await made.pull(target=None, targets=["a", "b"], wait=20)
        monkeypatch.undo()
        assert reply["error"]["code"] == "audit_unavailable" and made.engine.begun == []
        status = await made.data("job_status", job_id=reply["call_id"])
        assert status["state"] == "failed"
        assert [one["error"]["code"] for one in status["results"]] == ["audit_unavailable"] * 2
        await made.jobs.leave()

    run(work())


def test_what_an_ended_job_needed_to_go_on_is_forgotten(tmp_path: Path) -> None:
    async def work() -> str:
        made = Scene(tmp_path)
        id = await made.begun()
        made.jobs.store.keep(id, "a", "password", "hunter2-hunter2")
        made.engine.may_end.set()
        await made.ended(id)
        assert made.jobs.store.kept(id, "a") == {} and made.jobs.store.one(id).asked == {}  # type: ignore[union-attr]
        await made.jobs.leave()
        return id

    run(work())


def test_of_two_processes_that_take_up_a_job_one_does(tmp_path: Path) -> None:
    async def work() -> None:
        made = Scene(tmp_path)
        id = await made.begun()
        store = made.jobs.store
        before = store.one(id).owner  # type: ignore[union-attr]
        assert store.adopt(id, before, "second") and not store.adopt(id, before, "third")
        assert store.one(id).owner == "second"  # type: ignore[union-attr]
        made.engine.may_end.set()
        await made.ended(id)
        assert not store.adopt(id, "second", "fourth"), "what has ended is taken up by nobody"
        await made.jobs.leave()

    run(work())


def test_what_can_not_be_read_is_taken_for_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    job = Job(store, "1", "manage_service", "ann", ("a", "b"))
    store.keep("1", "b", BEGUN, True)
    assert run(job.cut_short()) == ["b"]

    def broken(_: str) -> set[str]:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "begun", broken)
    assert run(job.cut_short()) == ["a", "b"]


@pytest.mark.parametrize("begun", [True, False])
def test_what_a_revoked_token_had_begun_is_brought_to_its_end(tmp_path: Path, begun: bool) -> None:
    """Half a change is worse than a whole one; one that was not begun is not done."""

    async def work() -> None:
        made, bot = Scene(tmp_path), replace(principal(*ADMIN, subject="bot"), credential="t1")
        id = (await made.pull(bot))["job"]["id"]
        while not made.engine.begun:
            await asyncio.sleep(0.005)
        await made.jobs.leave()
        if begun:
            made.jobs.store.keep(id, "a", "old", "1")
        made.gateway = made.start()
        made.gateway.revoked = lambda token: token == "t1"
        made.engine.may_end.set()
        await made.jobs.take_up(lambda row, job: taking.take_up(made.gateway, row, job))
        status = await made.ended(id)
        assert status["state"] == ("done" if begun else "failed")
        assert len(made.engine.begun) == 1 + begun
        if not begun:
            error = status["results"][0]["error"]
            assert error["code"] == "unauthenticated" and "'bot' asked with is revoked" in error["message"]
        await made.jobs.leave()

    run(work())
