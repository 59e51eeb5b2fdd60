"""A gateway that is told to stop, or has no file descriptors left, in the middle of its work."""

import asyncio
import contextlib
import json
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from systemmanager.freezing import Freezer
from tests.fakes import codes
from tests.real.openssh import SshServer, SshServers, until
from tests.serving import ERAS, Era, Running, Served, serving
from tests.support import OPERATOR, real_gateway, run
from tests.test_freeze import freezes

FLEET = 6


def endless(folder: Path) -> Path:
    """A folder with a `systemctl` that writes its process group down and never ends, nor do its children."""
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(f"#!/bin/sh\necho $$ >> {folder}/pids\nsleep 300 & sleep 300; true\n")
    program.chmod(0o755)
    return folder


def fleet(server: SshServer) -> str:
    rows = {
        f"web-{number}": {
            "id": f"web-{number}",
            "executor": "ssh",
            "capabilities": ["admin"],
            "connection": {
                "host": server.host,
                "port": server.port,
                "username": server.username,
                "key_path": str(server.client_key),
                "host_key": server.fingerprint,
            },
        }
        for number in range(FLEET)
    }
    return json.dumps({"version": "1.0", "targets": rows})


def groups(folder: Path) -> set[int]:
    path = folder / "pids"
    return set(map(int, path.read_text().split())) if path.exists() else set()


def alive(pids: set[int]) -> list[psutil.Process]:
    """What still runs of process groups, by the parents or by themselves."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if process.status() != psutil.STATUS_ZOMBIE and (process.pid in pids or process.ppid() in pids):
                found.append(process)
    return found


@pytest.mark.parametrize("era", ERAS)
def test_a_stop_in_the_middle_of_a_fan_out_ends_all_that_runs_on_targets(
    era: Era, tmp_path: Path, ssh_servers: SshServers
) -> None:
    programs = endless(tmp_path / "programs")
    server = ssh_servers.start(f"SetEnv PATH={programs}:/usr/bin:/bin HOME={tmp_path}")
    (tmp_path / "targets.yaml").write_text(fleet(server))

    took: list[float] = []

    async def work(running: Running) -> Any:
        async with Served(running.url).client(era) as client:
            asked = {"targets": "*", "service_name": "nginx"}
            calling = asyncio.create_task(client.call_tool("get_service_status", asked, raise_on_error=False))
            await asyncio.to_thread(until, lambda: len(groups(programs)) == FLEET, "all run", 30.0)
            children = {child.pid for process in alive(groups(programs)) for child in process.children()}
            begun = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.process.wait, 15) == 0
            took.append(time.monotonic() - begun)
            pids = groups(programs) | children
            await asyncio.to_thread(until, lambda: not alive(pids), "the process groups are gone")
            async with asyncio.timeout(10):
                return (await asyncio.gather(calling, return_exceptions=True))[0]

    with serving(tmp_path, {"SYSTEMMANAGER_TARGETS_CONFIG": str(tmp_path / "targets.yaml")}) as running:
        answer: Any = None
        with contextlib.suppress(httpx.HTTPError, RuntimeError, BaseExceptionGroup):  # the client's own farewell
            answer = run(work(running))
        assert running.process.poll() == 0, running.log.read_text()
        records = running.records()
    assert took and took[0] < 10 and not alive(groups(programs))
    intents = {one["target"] for one in records if one["phase"] == "intent"}
    outcomes = [one["target"] for one in records if one["phase"] == "outcome"]
    assert len(intents) == FLEET and sorted(outcomes) == sorted(intents)
    assert {one["code"] for one in records if one["phase"] == "outcome"} == {"cancelled"}
    assert not isinstance(answer, TimeoutError)


def test_a_freeze_ends_the_process_groups_that_run_on_a_target(tmp_path: Path, ssh_servers: SshServers) -> None:
    programs = endless(tmp_path / "programs")
    server = ssh_servers.start(f"SetEnv PATH={programs}:/usr/bin:/bin HOME={tmp_path}")

    async def work() -> None:
        async with real_gateway(tmp_path, server.target(), freezer=Freezer(tmp_path)) as gateway:
            watching = asyncio.create_task(gateway.freezer.watch())
            asked = {"target": "web-01", "service_name": "nginx"}
            calling = asyncio.create_task(gateway.call(OPERATOR, "get_service_status", asked))
            await asyncio.to_thread(until, lambda: len(groups(programs)) == 1, "it runs", 30.0)
            pids = groups(programs) | {child.pid for one in alive(groups(programs)) for child in one.children()}
            assert len(pids) > 1
            freezes(tmp_path, "web-01")
            reply = (await asyncio.wait_for(calling, 3)).as_dict()
            assert codes(reply) == {"web-01": "frozen"}
            await asyncio.to_thread(until, lambda: not alive(pids), "the process groups are gone", 3.0)
            watching.cancel()

    run(work())


def open_files(process: psutil.Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def test_without_file_descriptors_the_gateway_waits_and_goes_on(tmp_path: Path) -> None:
    """accept(2) fails with EMFILE then, and the waiting connection stays readable: a loop that tries again spins."""
    with serving(tmp_path) as running, contextlib.ExitStack() as held:
        process, address = psutil.Process(running.process.pid), httpx.URL(running.url)
        health = running.url.replace("/mcp", "/healthz")
        kept = held.enter_context(httpx.Client())
        assert kept.get(health).status_code == 200
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files(process) + 4, before[1]))
        waiting = [
            held.enter_context(socket.create_connection((address.host, address.port or 0), 10)) for _ in range(40)
        ]
        used, begun = sum(process.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - begun < 3:
            assert kept.get(health).status_code == 200, "who is connected is served"
            time.sleep(0.3)
        assert sum(process.cpu_times()[:2]) - used < 1, "it does not spin"
        assert running.process.poll() is None and not answers(health), "none is left"
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        for one in waiting:
            one.close()
        assert until(lambda: answers(health), "it recovers")
        assert run(lists(running.url))


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url).status_code == 200
    return False


async def lists(url: str) -> bool:
    async with Served(url).client("auto") as client:
        return bool(await client.list_tools())
