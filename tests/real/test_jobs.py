"""A gateway that is killed in the middle of a job on an SSH target: the next one takes it up, nothing runs twice."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.real.openssh import SshServers
from tests.serving import Running, Served, command, serving
from tests.support import run

LINES = 30
APT = """#!/bin/sh
case "$*" in
*-s*|*update*) exit 0;;
esac
echo begun >>'{effects}'
while [ -e '{effects}.hold' ]; do sleep 0.05; done
i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo "step $i of {lines}"; sleep 0.05; done
echo ended >>'{effects}'
"""


@pytest.fixture
def upgrading(ssh_servers: SshServers, tmp_path: Path) -> Path:
    """A targets.yaml with one Debian whose upgrade takes its time, and leaves a line at its begin and its end."""
    programs = tmp_path / "programs"
    programs.mkdir()
    apt = programs / "apt-get"
    apt.write_text(APT.format(effects=tmp_path / "effects", lines=LINES))
    apt.chmod(0o755)
    server = ssh_servers.start(f"SetEnv PATH={programs}:{os.environ['PATH']}")
    file = tmp_path / "targets.yaml"
    file.write_text(f"""version: "1.0"
targets:
  web-01:
    id: web-01
    type: remote
    executor: ssh
    connection: {{host: {server.host}, port: {server.port}, username: root, key_path: {server.client_key},
      host_key: "{server.fingerprint}"}}
    capabilities: [admin]
""")
    return file


def settings(targets: Path) -> dict[str, str]:
    return {"SYSTEMMANAGER_TARGETS_CONFIG": str(targets)}


async def asked(there: Served, tool: str, **arguments: Any) -> dict[str, Any]:
    async with there.client("auto", "admin") as client:
        answer = await client.call_tool(tool, arguments, raise_on_error=False)
        found: dict[str, Any] = answer.structured_content
        return found


def begun(gateway: Running, folder: Path) -> str:
    """A job that runs, approved."""
    there, call = Served(gateway.url), {"target": "web-01", "auto_approve": True, "wait": 0, "idempotency_key": "k"}
    held = run(asked(there, "update_system_packages", **call))
    id = held["results"][0]["error"]["details"]["approval_id"]
    command(folder, "approvals", "approve", id, "--yes")
    return str(run(asked(there, "update_system_packages", **call, approval_id=id))["job"]["id"])


async def ended(there: Served, job: str, within: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        status = (await asked(there, "job_status", job_id=job))["results"][0]["data"]
        if status["state"] != "running":
            return dict(status)
        await asyncio.sleep(0.1)
    raise AssertionError(f"job {job} did not end")


def judge(gateway: Running, folder: Path, job: str) -> None:
    """Everything happened once, all output is there, and each intent of the log has one outcome."""
    there = Served(gateway.url)
    status = run(ended(there, job))
    assert status["state"] == "done", status
    assert (folder / "effects").read_text().splitlines() == ["begun", "ended"]
    output = run(asked(there, "job_output", job_id=job))["results"][0]["data"]["output"]
    assert [line for line in output.splitlines() if line.startswith("step ")] == [
        f"step {number} of {LINES}" for number in range(1, LINES + 1)
    ]
    phases = Counter(one["phase"] for one in gateway.records() if one.get("call_id") == job)
    assert phases["intent"] == phases["outcome"] >= 1
    again = run(asked(there, "update_system_packages", target="web-01", auto_approve=True, idempotency_key="k"))
    assert again["call_id"] == job and again["ok"]
    command(folder, "audit", "verify")


@pytest.mark.parametrize("round", range(4))
def test_a_gateway_that_is_killed_loses_nothing(upgrading: Path, tmp_path: Path, round: int) -> None:
    chance = random.Random(round)  # noqa: S311
    with serving(tmp_path, settings(upgrading)) as first:
        job = begun(first, tmp_path)
        time.sleep(chance.uniform(0, 1.5))
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    with serving(tmp_path, settings(upgrading)) as second:
        judge(second, tmp_path, job)


def test_a_gateway_that_is_stopped_leaves_its_job_running(upgrading: Path, tmp_path: Path) -> None:
    with serving(tmp_path, settings(upgrading)) as first:
        job = begun(first, tmp_path)
        first.process.terminate()
        assert first.process.wait(10) == 0
        codes = [one.get("code") for one in first.records() if one.get("call_id") == job and one["phase"] == "outcome"]
        assert codes[-1] in ("handed_over", "not_run")
    with serving(tmp_path, settings(upgrading)) as second:
        judge(second, tmp_path, job)


def test_a_job_that_is_ended_ends_on_the_target(upgrading: Path, tmp_path: Path) -> None:
    (tmp_path / "effects.hold").touch()
    with serving(tmp_path, settings(upgrading)) as gateway:
        job, there = begun(gateway, tmp_path), Served(gateway.url)
        deadline = time.monotonic() + 20
        while not (tmp_path / "effects").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        command(tmp_path, "call", "job_cancel", f"job_id={job}", "--yes")
        assert run(ended(there, job))["state"] == "cancelled"
        (tmp_path / "effects.hold").unlink()
        time.sleep(LINES * 0.05 + 0.5)  # so long it would have run on
        assert (tmp_path / "effects").read_text().splitlines() == ["begun"]
