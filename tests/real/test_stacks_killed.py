"""A gateway that is killed in the middle of a deployment: what it had begun ends first, and what ran before it is the
way back of the next one, too."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import EngineRefused
from systemmanager.executors.bounded import Collected
from systemmanager.executors.programs import run_program
from systemmanager.executors.stacks import EngineStacks
from systemmanager.jobs import taking
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobStore
from systemmanager.operations import stack_deployment, stack_health
from systemmanager.plans.store import PlanStore
from tests.real.stacks import Stacks
from tests.real.test_stacks import healthy
from tests.support import OPERATOR, UNTAINTED, real_gateway, run

WORK = "echo begun >>{file}; while [ -e {file}.hold ]; do sleep 0.05; done; echo ended >>{file}"


def port(folder: Path) -> EngineStacks:
    """A Stacks port of which only the locks are used."""
    made = object.__new__(EngineStacks)
    made._folder, made._holds = folder, ()
    return made


async def one(folder: Path) -> None:
    """What a gateway does: a program of its, alone."""
    stacks = port(folder)
    async with stacks.alone("app"):
        script = WORK.format(file=folder / "effects")
        await run_program(("/bin/sh", "-c", script), Collected(100), {"PATH": os.defpath}, holds=stacks._holds)


def said(folder: Path) -> list[str]:
    file = folder / "effects"
    return file.read_text().split() if file.exists() else []


def test_what_a_killed_gateway_had_begun_ends_before_more_begins(tmp_path: Path) -> None:
    hold = tmp_path / "effects.hold"
    hold.touch()
    program = "import asyncio, pathlib, sys; from tests.real.test_stacks_killed import one;"
    argv = [sys.executable, "-c", f"{program} asyncio.run(one(pathlib.Path(sys.argv[1])))", str(tmp_path)]
    gateway = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + 30
        while said(tmp_path) != ["begun"]:
            assert time.monotonic() < deadline and gateway.poll() is None
            time.sleep(0.02)
        with pytest.raises(EngineRefused, match="being changed already"):
            run(one(tmp_path))
    finally:
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.wait()

    async def next_gateway() -> None:
        waiting = asyncio.create_task(one(tmp_path))
        await asyncio.sleep(0.5)
        assert said(tmp_path) == ["begun"] and not waiting.done()
        hold.unlink()
        await waiting

    run(next_gateway())
    assert said(tmp_path) == ["begun", "ended", "begun", "ended"]


@asynccontextmanager
async def not_undone(*_: Any) -> AsyncIterator[None]:
    """As where the process is gone before it could undo anything."""
    yield


def cut_off(stacks: Stacks, tool: str, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> dict[str, Any]:
    """A deployment whose gateway is gone when all is up and not proved yet; how the next gateway ends it."""
    fields = {"policy": replace(UNTAINTED, stacks=stacks.rules), "plans": PlanStore(stacks.state / "plans.sqlite")}

    def jobs() -> Jobs:
        made = Jobs(JobStore(stacks.state / "jobs.sqlite"), stacks.state / "jobs")
        made.runs = True
        return made

    async def approve(_: Sequence[Any]) -> str:
        return "the test"

    async def work() -> dict[str, Any]:
        first, up = jobs(), asyncio.Event()

        async def never(*_: Any) -> None:
            up.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as dying:
            dying.setattr(stack_deployment, "_undone_on_failure", not_undone)
            dying.setattr(stack_health, "prove", never)
            async with real_gateway(stacks.state, stacks.target, jobs=first, **fields) as gateway:
                given = {**arguments, "target": stacks.target.id, "wait": 0}
                id = (await gateway.call(OPERATOR, tool, given, approve=approve)).call_id
                await asyncio.wait_for(up.wait(), 60)
                await first.leave()
        second = jobs()
        async with real_gateway(stacks.state, stacks.target, jobs=second, **fields) as gateway:
            await second.take_up(partial(taking.take_up, gateway))
            row = await asyncio.wait_for(second.ended(id), 120)
            assert row is not None
            found = (await second.reply_of(row)).as_dict()
            await second.leave()
        result: dict[str, Any] = found["results"][0]
        return result

    return run(work())


def test_what_ran_before_comes_back_when_the_next_gateway_finds_it_ill(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    first = stacks.repositories.commit("app", healthy())
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    stacks.repositories.commit("app", healthy("exec sleep 600", "/nowhere"))
    result = cut_off(stacks, "update_stack", monkeypatch, stack_name=name)
    assert result["error"]["code"] == "rolled_back" and first[:12] in result["error"]["hint"], result
    after = stacks.containers(name)
    assert after["web"]["State"]["Running"]
    assert after["web"]["Config"]["Labels"]["systemmanager.stack.commit"] == first
    assert stacks.data("get_stack_status", stack_name=name)["ok"]


def test_a_first_deployment_that_was_cut_off_and_is_ill_is_removed(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    stacks.repositories.commit("app", healthy("exec sleep 600", "/nowhere"))
    result = cut_off(stacks, "deploy_stack", monkeypatch, stack_name=name, repo_url=repo)
    assert result["error"]["code"] == "rolled_back" and "removed again" in result["error"]["hint"], result
    assert stacks.containers(name) == {}


def test_one_that_is_well_is_finished(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    name, repo = stacks.name(), stacks.repositories.url("app")
    stacks.repositories.commit("app", healthy())
    stacks.data("deploy_stack", stack_name=name, repo_url=repo)
    second = stacks.repositories.commit("app", healthy("echo two; echo kept > /data/kept; exec sleep 600"))
    result = cut_off(stacks, "update_stack", monkeypatch, stack_name=name)
    assert result["ok"], result
    assert stacks.data("get_stack_status", stack_name=name)["commit"] == second
