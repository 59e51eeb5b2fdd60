"""A gateway that is killed in the middle of a container's update: the next one ends it, or puts the old one back."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import GatewayError, RolledBack
from tests.real.engine import Containers, Engine
from tests.real.registry import Registry
from tests.real.test_jobs import asked, ended
from tests.real.update_victim import update
from tests.serving import Served, command, serving
from tests.support import run

SLEEP = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]
DIES = ["/bin/sh", "-c", "echo no database; exit 3"]


@pytest.fixture
def app(engine: Engine, registry: Registry) -> str:
    name = registry.put("team/app", files={"version": "1"}, Cmd=SLEEP)
    engine.client.pull(name, "latest")
    return name


def killed(engine: Engine, name: str, folder: Path, at: int, when: str) -> int:
    """The exit status of the first process, which is to die at a step."""
    argv = [sys.executable, "-m", "tests.real.update_victim", engine.socket, name, str(folder), str(at), when]
    return subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode


def alone_and_running(containers: Containers, name: str) -> dict[str, Any]:
    """The container under the name; there is nothing beside it."""
    now = containers.state(name)
    rows = containers.client.containers(all=True, filters={"name": name})
    assert [row["Names"] for row in rows] == [[f"/{name}"]], "something is left over"
    return now


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 7))
def test_killed_at_any_step_the_update_is_finished(
    at: int, when: str, runs: bool, engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app, start=runs)
    old = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    died = killed(engine, name, tmp_path, at, when)
    assert died == (-signal.SIGKILL if at <= (6 if runs else 4) else 0)
    if died == 0:
        return
    answer = run(update(engine.socket, name, tmp_path))
    now = alone_and_running(containers, name)
    assert now["State"]["Running"] is runs and now["Id"] != old["Id"]
    assert answer.updated and answer.id == now["Id"][:12], "and it says which"
    assert now["Image"] == engine.client.inspect_image(app)["Id"]
    assert str(old["Image"]).startswith(f"sha256:{answer.previous_image_id}")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 9))
def test_killed_at_any_step_of_one_that_fails_the_old_one_comes_back(
    at: int, when: str, engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    """Steps 6 to 8 are those of the way back: removing the new one, renaming the old one, starting it."""
    name = containers(image=app)
    old = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=DIES)
    assert killed(engine, name, tmp_path, at, when) == -signal.SIGKILL
    if at >= 6:  # it has failed already, and is not tried again with what is newer by now
        registry.put("team/app", files={"version": "3"}, Cmd=SLEEP)
    with pytest.raises(RolledBack) as caught:
        run(update(engine.socket, name, tmp_path))
    now = alone_and_running(containers, name)
    assert now["Id"] == old["Id"] and now["State"]["Running"]
    assert "exit status 3" in caught.value.message and "previous image" in (caught.value.hint or "")


def test_what_is_started_to_be_removed_survives_too(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app, host={"auto_remove": True})
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert killed(engine, name, tmp_path, 2, "after") == -signal.SIGKILL
    assert run(update(engine.socket, name, tmp_path)).updated
    assert alone_and_running(containers, name)["State"]["Running"]


def test_both_gone_by_hand_is_said(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert killed(engine, name, tmp_path, 3, "after") == -signal.SIGKILL
    for row in engine.client.containers(all=True, filters={"name": name}):
        engine.client.remove_container(row["Id"], force=True)
    with pytest.raises(GatewayError) as caught:
        run(update(engine.socket, name, tmp_path))
    assert caught.value.code == "not_found"
    assert not engine.client.containers(all=True, filters={"name": name}), "nobody wanted it any more"


@pytest.mark.parametrize("round", range(3))
def test_a_killed_gateway_s_update_is_taken_up(
    round: int, engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    old = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    targets = tmp_path / "targets.yaml"
    targets.write_text(f"""version: "1.0"
targets:
  engine:
    id: engine
    type: remote
    executor: docker
    connection: {{socket_path: {engine.socket}}}
    capabilities: [admin]
""")
    given = {"SYSTEMMANAGER_TARGETS_CONFIG": str(targets)}
    with serving(tmp_path, given) as first:
        there, call = Served(first.url), {"target": "engine", "name_or_id": name, "wait": 0}
        held = run(asked(there, "update_docker_container", **call))
        id = held["results"][0]["error"]["details"]["approval_id"]
        command(tmp_path, "approvals", "approve", id, "--yes")
        job = run(asked(there, "update_docker_container", **call, approval_id=id))["job"]["id"]
        time.sleep(random.Random(round).uniform(0, 1.5))  # noqa: S311
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    with serving(tmp_path, given) as second:
        status = run(ended(Served(second.url), job))
        assert status["state"] == "done" and status["results"][0]["data"]["updated"], status
    now = alone_and_running(containers, name)
    assert now["State"]["Running"] and now["Id"] != old["Id"]
    command(tmp_path, "audit", "verify")
