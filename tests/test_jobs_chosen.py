"""Which calls are jobs: those in waves, those whose caller says how long they wait or under which key, and plans."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from systemmanager.gateway import Gateway
from systemmanager.jobs.job import CUT
from systemmanager.jobs.store import MOST_OUTPUT
from systemmanager.plans.planner import Planner
from systemmanager.plans.store import PlanStore
from tests import test_jobs
from tests.support import run

STATE = {"Status": "running", "Running": True, "ExitCode": 0}


class Engine(test_jobs.Engine):
    async def act(self, action: str, name: str) -> None:
        self.begun.append(action)

    async def inspect(self, name: str) -> dict[str, Any]:
        return {"Id": "1" * 64, "Name": "/web", "State": STATE, "Config": {}, "Image": "sha256:1"}


class Scene(test_jobs.Scene):
    """With a container that can be restarted, and plans."""

    def start(self) -> Gateway:
        self.engine, gateway = Engine(), super().start()
        gateway.planner = Planner(gateway.runner, PlanStore(self.folder / "plans.sqlite"))
        return gateway

    async def restarted(self, **more: Any) -> dict[str, Any]:
        asked = {"action": "restart", "name_or_id": "web", "targets": ["a"]}
        return await self.call("manage_container", **{**asked, **more})

    async def listed(self) -> int:
        return int((await self.data("list_jobs"))["total"])


@pytest.fixture
def made(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("given", [{"wait": 0}, {"idempotency_key": "k1"}, {"wait": 0, "strategy": {}}])
def test_a_restart_is_a_job_for_whoever_says_how_long_they_wait_or_under_which_key(
    made: Scene, given: dict[str, Any]
) -> None:
    """Without that it is answered when it is done, and is on no list."""

    async def work() -> None:
        assert "job" not in await made.restarted() and await made.listed() == 0
        first = await made.restarted(**given)
        if given.get("wait") == 0:
            assert first["job"]["state"] == "running" and first["results"] == []
        await made.ended(first["call_id"])
        assert "job" not in await made.restarted(**given, dry_run=True) and await made.listed() == 1
        await made.jobs.leave()

    run(work())


def test_the_same_key_restarts_once(made: Scene) -> None:
    async def work() -> None:
        first, second = [await made.restarted(idempotency_key="k1", strategy={}) for _ in range(2)]
        assert first["ok"] and first["call_id"] == second["call_id"] and made.engine.begun == ["restart"]
        other = await made.restarted(idempotency_key="k1", strategy={}, action="stop")
        assert other["error"]["code"] == "idempotency_conflict" and made.engine.begun == ["restart"]
        await made.jobs.leave()

    run(work())


def test_a_plan_is_carried_out_as_a_job_for_as_long_as_its_caller_waits(made: Scene) -> None:
    async def work() -> None:
        planned = (await made.pull(dry_run=True))["results"][0]["data"]["plan_id"]
        job = (await made.call("apply_plan", plan_id=planned, wait=0))["job"]
        assert job["state"] == "running" and made.engine.ended == []
        made.engine.may_end.set()
        assert (await made.ended(job["id"]))["tool"] == "pull_docker_image"
        await made.jobs.leave()

    run(work())


def test_an_ended_job_tells_where_it_was_at_work_and_where_it_had_not_begun(made: Scene) -> None:
    async def work() -> None:
        on: dict[str, Any] = {"target": None, "targets": ["a", "b"], "strategy": {}}
        id = (await made.pull(**on))["job"]["id"]
        while not made.engine.begun:
            await asyncio.sleep(0.005)
        one, other = (await made.data("job_cancel", job_id=id))["results"]
        assert one["error"]["code"] == "cancelled" and "look how far it came" in one["error"]["message"]
        assert other["error"]["code"] == "not_started" and made.engine.begun == ["nginx"]
        await made.jobs.leave()

    run(work())


def test_output_beyond_its_bound_is_cut_at_a_line_and_says_so(made: Scene) -> None:
    async def work() -> None:
        id = (await made.pull())["job"]["id"]
        job, line = made.jobs._running[id], "x" * 99 + "\n"
        following = await job.following("a")
        for _ in range(3):
            following.heard(line * 5000)
        following.heard("the end\n")
        await job.flush()
        kept = made.jobs.store.output(id, "a")
        assert len(kept) <= MOST_OUTPUT + 50 and kept.endswith(line + CUT) and kept.count(CUT) == 1
        made.engine.may_end.set()
        await made.ended(id)
        await made.jobs.leave()

    run(work())


def test_a_restart_that_a_stop_of_the_gateway_cuts_off_is_told_at_once(made: Scene) -> None:
    """Nobody could go on with it: the next gateway has nothing to take up."""

    async def work() -> None:
        begun = asyncio.Event()

        async def act(action: str, name: str) -> None:
            begun.set()
            await asyncio.Event().wait()

        made.engine.act = act  # type: ignore[attr-defined]
        id = (await made.restarted(wait=0))["call_id"]
        await asyncio.wait_for(begun.wait(), 10)
        await made.jobs.leave()
        row = made.jobs.store.one(id)
        assert row is not None and row.state == "interrupted"
        assert made.jobs.store.results(id)["a"]["error"]["code"] == "interrupted"

    run(work())


def test_a_job_remembers_the_wave_of_each_target(made: Scene) -> None:
    async def work() -> None:
        made.engine.may_end.set()
        on: dict[str, Any] = {"target": None, "targets": ["a", "b"], "strategy": {"health": False}}
        id = (await made.pull(**on))["job"]["id"]
        waves = (await made.ended(id))["summary"]["waves"]
        assert waves == [{"wave": 1, "targets": 1, "failed": 0}, {"wave": 2, "targets": 1, "failed": 0}]
        await made.jobs.leave()

    run(work())
