"""Plans and waves against a real engine, a real registry and real SSH servers."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from systemmanager.plans.store import PlanStore
from systemmanager.target import Target
from tests.real.docker_calls import on
from tests.real.engine import Containers, Engine
from tests.real.machine import USER, Machine
from tests.real.openssh import SshServers
from tests.real.registry import Registry
from tests.support import OPERATOR, real_gateway, run

LOOPS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
Call = Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]]


@asynccontextmanager
async def calls(tmp_path: Path, *targets: Target) -> AsyncIterator[Call]:
    """Calls on one gateway, approved where they ask for that; each answers its results."""

    async def approve(requests: Sequence[Any]) -> str:
        return "the test"

    async with real_gateway(tmp_path, *targets, plans=PlanStore(tmp_path / "plans.sqlite")) as gateway:

        async def call(tool: str, **arguments: Any) -> list[dict[str, Any]]:
            reply = await gateway.call(OPERATOR, tool, arguments, approve=approve)
            body = reply.as_dict()
            assert "results" in body, body
            found: list[dict[str, Any]] = body["results"]
            return found

        yield call


def test_a_container_is_stopped_as_planned_and_brought_back_by_the_inverse(
    engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    name = containers(LOOPS)

    async def work() -> None:
        async with calls(tmp_path, on(engine, "docker")) as call:
            given = {"action": "stop", "name_or_id": name, "target": "host-01"}
            (planned,) = await call("manage_container", **given, dry_run=True)
            plan = planned["data"]["plan"]
            assert plan["changes"] == [
                {"what": f"container {name}", "field": "state", "before": "running", "after": "exited"}
            ]
            assert containers.state(name)["State"]["Running"]
            (done,) = await call("apply_plan", plan_id=planned["data"]["plan_id"])
            assert done["data"]["state"] == "exited" and not containers.state(name)["State"]["Running"]
            (back,) = await call(plan["inverse"]["tool"], **plan["inverse"]["arguments"], target="host-01")
            assert back["data"]["state"] == "running" and containers.state(name)["State"]["Running"]

    run(work())


def test_a_container_that_was_restarted_meanwhile_is_not_stopped(
    engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    name = containers(LOOPS)

    async def work() -> None:
        async with calls(tmp_path, on(engine, "docker")) as call:
            given = {"action": "stop", "name_or_id": name, "target": "host-01"}
            (planned,) = await call("manage_container", **given, dry_run=True)
            engine.client.restart(name, timeout=5)
            (refused,) = await call("apply_plan", plan_id=planned["data"]["plan_id"])
            assert refused["error"]["code"] == "precondition_failed"
            assert [one["name"] for one in refused["error"]["details"]["moved"]] == ["started"]
            assert containers.state(name)["State"]["Running"]

    run(work())


DROP_IN = "/etc/systemd/system/sm-steady.service.d"


@pytest.mark.parametrize("user", ["root", USER])
def test_a_unit_is_stopped_as_planned_unless_it_was_restarted_or_edited_meanwhile(
    machine: Machine, tmp_path: Path, user: str
) -> None:
    """Over SSH, with systemd as it is; a plan needs no sudo, carrying it out does."""
    machine.ssh("systemctl start sm-steady")
    constraints = {"sudo_policy": "none" if user == "root" else "limited", "units": ["sm-*"]}
    box = machine.target("box", connection={"username": user}, constraints=constraints)
    given = {"action": "stop", "service_name": "sm-steady", "target": "box"}

    async def work() -> None:
        async with calls(tmp_path, box) as call:
            (first,) = await call("manage_service", **given, dry_run=True)
            machine.ssh("systemctl restart sm-steady")
            (refused,) = await call("apply_plan", plan_id=first["data"]["plan_id"])
            assert [one["name"] for one in refused["error"]["details"]["moved"]] == ["main_pid"]
            (edited,) = await call("manage_service", **given, dry_run=True)
            machine.ssh(f"mkdir {DROP_IN} && echo '[Service]' >{DROP_IN}/x.conf && systemctl daemon-reload")
            (refused,) = await call("apply_plan", plan_id=edited["data"]["plan_id"])
            machine.ssh(f"rm -r {DROP_IN} && systemctl daemon-reload")
            assert [one["name"] for one in refused["error"]["details"]["moved"]] == ["files"]
            (second,) = await call("manage_service", **given, dry_run=True)
            assert machine.ssh("systemctl is-active sm-steady").strip() == "active"
            (done,) = await call("apply_plan", plan_id=second["data"]["plan_id"])
            assert done["data"]["active"] == "inactive"
            (back,) = await call("manage_service", **second["data"]["plan"]["inverse"]["arguments"], target="box")
            assert back["data"]["active"] == "active"

    run(work())


def test_a_pull_is_planned_with_the_digest_that_the_registry_has(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    name = registry.put("team/planned", "1.0", Cmd=["/bin/true"])
    given = {"image_name": name, "tag": "1.0", "target": "host-01"}

    async def work() -> None:
        async with calls(tmp_path, on(engine, "docker")) as call:
            (first,) = await call("pull_docker_image", **given, dry_run=True)
            (change,) = first["data"]["plan"]["changes"]
            assert "before" not in change and change["after"].startswith("sha256:")
            assert not [one for one in engine.client.images(name) if one], "nothing was pulled"
            (pulled,) = await call("pull_docker_image", **given)
            assert pulled["data"]["digest"] == change["after"]
            (same,) = await call("pull_docker_image", **given, dry_run=True)
            assert same["data"]["plan"]["changes"] == []
            registry.put("team/planned", "1.0", Cmd=["/bin/false"])
            (newer,) = await call("pull_docker_image", **given, dry_run=True)
            (change,) = newer["data"]["plan"]["changes"]
            assert change["before"] == pulled["data"]["digest"] != change["after"]
            registry.put("team/planned", "1.0", Cmd=["/bin/echo"])
            (refused,) = await call("apply_plan", plan_id=newer["data"]["plan_id"])
            assert refused["error"]["code"] == "precondition_failed"
            assert [one["name"] for one in refused["error"]["details"]["moved"]] == ["in the registry"]

    run(work())


def test_a_wave_over_ssh_stops_where_a_host_has_gone(
    engine: Engine, containers: Containers, ssh_servers: SshServers, tmp_path: Path
) -> None:
    names = [containers(LOOPS) for _ in range(2)]
    servers = [ssh_servers.start() for _ in range(4)]
    socket = {"docker_socket": engine.socket}
    targets = [server.target(f"web-0{place}", connection=socket) for place, server in enumerate(servers, 1)]

    async def work() -> None:
        async with calls(tmp_path, *targets) as call:
            given = {"action": "restart", "targets": [one.id for one in targets], "strategy": {"batch": "1,2,100%"}}
            good = await call("manage_container", name_or_id=names[0], **given)
            assert [(one["ok"], one["wave"]) for one in good] == [(True, 1), (True, 2), (True, 3), (True, 3)]
            servers[1].stop()
            stopped = await call("manage_container", name_or_id=names[1], **given)
            codes = [one["error"]["code"] if "error" in one else "ok" for one in stopped]
            assert codes[0] == "ok" and codes[1] != "ok" and codes[2:] == ["not_started", "not_started"], codes

    run(work())
