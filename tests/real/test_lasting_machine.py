"""Commands that last on a machine that systemd runs: units of their own, which nothing of ours takes along."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import EndedUnknown
from tests.lasting import Follower
from tests.real.machine import USER, Machine
from tests.real.openssh import until
from tests.real.ssh_ports import ssh_executor
from tests.support import run

SPOOLS = "/var/lib/systemmanager/jobs"


@pytest.fixture
def job(machine: Machine) -> Iterator[Follower]:
    follower = Follower()
    yield follower
    machine.ssh(f"rm -rf {SPOOLS}/{follower.id}.*")


def units(machine: Machine, job: Follower) -> str:
    return machine.ssh(f"systemctl list-units --all --no-legend --plain 'systemmanager-{job.id}-*'")


def processes(machine: Machine, name: str) -> str:
    return machine.ssh(f"pgrep -x {name}")


def test_root_s_command_is_a_unit_and_sees_what_it_would_see_without(
    tmp_path: Path, machine: Machine, job: Follower
) -> None:
    say = 'printf "%s|" "$@"; umask; pwd; cat; env | sort | grep -v ^_=; tr "\\0" . </proc/$$/stat | cut -d" " -f7'
    argv = ("sh", "-c", say, "sh", "${HOME}", "$HOME", "%h", "a\n", "'")

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(machine.target(), "Shell"))
            wanted = await port.run(*argv, env={"A": "x  y\n$z"})
            found = await port.detached("apply", *argv, env={"A": "x  y\n$z"})
            ours = [line for line in found.stdout.splitlines() if not line.startswith("SSH_")]
            assert ours == [line for line in wanted.stdout.splitlines() if not line.startswith("SSH_")]
            group = await port.detached("group", "cat", "/proc/self/cgroup")
            assert f"systemmanager-{job.id}-group.service" in group.stdout
            await port.forget()

    run(work())
    assert units(machine, job) == "" and machine.ssh(f"ls {SPOOLS}") == ""


def test_it_outlives_the_server_that_we_came_through(tmp_path: Path, machine: Machine, job: Follower) -> None:
    go = f"/run/go-{job.id}"
    cut = "systemctl kill --signal=KILL ssh; systemctl restart ssh; pkill -KILL -f '^sshd: root'"
    argv = ("sh", "-c", f"echo begun; until [ -e {go} ]; do sleep 0.05; done; {cut}; sleep 0.5; echo done")

    async def work() -> Any:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(machine.target(), "Shell"))
            task = asyncio.create_task(port.detached("apply", *argv))
            await asyncio.to_thread(until, lambda: job.text == "begun\n", "it has begun", 30)
            await asyncio.to_thread(machine.ssh, f"touch {go}")
            return await task

    assert run(work()).stdout == "begun\ndone\n"


@pytest.mark.parametrize("username", ["root", USER])
def test_cancelled_it_is_gone_with_all_that_it_started(
    tmp_path: Path, machine: Machine, job: Follower, username: str
) -> None:
    program = "trap '' TERM; setsid sleep 1000 & while :; do sleep 1001; done"

    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(machine.target(connection={"username": username}), "Shell"))
            task = asyncio.create_task(port.detached("apply", "sh", "-c", program))
            await asyncio.to_thread(until, lambda: len(processes(machine, "sleep").split()) >= 2, "it runs")
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < 5
            left = machine.ssh("pgrep -ax sleep")
            assert "sleep 1001" not in left
            if username == "root":  # a unit ends with those that left its process group, too
                assert "sleep 1000" not in left and units(machine, job) == ""

    try:
        run(work())
    finally:
        machine.ssh("pkill -KILL -x sleep")


def test_a_machine_that_ended_it_is_not_taken_for_success(tmp_path: Path, machine: Machine, job: Follower) -> None:
    async def work() -> None:
        async with ssh_executor(tmp_path) as opened:
            port = job.follow(await opened(machine.target(), "Shell"))
            task = asyncio.create_task(port.detached("apply", "sh", "-c", "echo half; sleep 1000"))
            await asyncio.to_thread(until, lambda: "half" in job.text, "it has begun")
            await asyncio.to_thread(machine.ssh, f"systemctl kill --signal=KILL systemmanager-{job.id}-apply")
            with pytest.raises(EndedUnknown):
                await task

    run(work())
