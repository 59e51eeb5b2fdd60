"""Updating containers on a real engine: nothing is lost, and what fails is undone."""

from pathlib import Path
from typing import Any

import pytest

from systemmanager.operations import container_update
from tests.real.docker_calls import KINDS, answer, failure, on
from tests.real.engine import Containers, Engine, until
from tests.real.openssh import SshServer
from tests.real.registry import Registry

SLEEP = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_update, "SETTLE", 0.5)


@pytest.fixture
def app(engine: Engine, registry: Registry) -> str:
    """An image in the registry and on the engine, in its first version."""
    name = registry.put("team/app", files={"version": "1"}, Cmd=SLEEP)
    engine.client.pull(name, "latest")
    return name


def update(tmp_path: Path, engine: Engine, name: str, kind: str = "docker", **arguments: Any) -> dict[str, Any]:
    return answer(tmp_path, "update_docker_container", {"name_or_id": name, **arguments}, on(engine, kind))


def refused(tmp_path: Path, engine: Engine, name: str, **fields: Any) -> dict[str, Any]:
    return failure(tmp_path, "update_docker_container", {"name_or_id": name}, on(engine, **fields))


def family(containers: Containers, name: str) -> list[str]:
    """Names of all containers that are called so or begin so."""
    rows = containers.client.containers(all=True)
    return sorted(one.lstrip("/") for row in rows for one in row["Names"] if one.startswith(f"/{name}"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_gets_the_new_image_under_its_name(
    kind: str, engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    before = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    data = update(tmp_path, engine, name, kind)
    after = containers.state(name)
    assert data["updated"] and data["name"] == name and data["state"] == "running" and "note" not in data
    assert data["id"] == after["Id"][:12] != before["Id"][:12]
    assert after["Image"].startswith(f"sha256:{data['image_id']}")
    assert before["Image"].startswith(f"sha256:{data['previous_image_id']}")
    assert after["Image"] == engine.client.inspect_image(app)["Id"] != before["Image"]
    assert family(containers, name) == [name]


def test_over_ssh_the_targets_engine_is_asked(
    engine: Engine, containers: Containers, registry: Registry, app: str, ssh_server: SshServer, tmp_path: Path
) -> None:
    name = containers(image=app)
    where = ssh_server.target("web-01", connection={"docker_socket": engine.socket})
    listed = answer(tmp_path, "get_container_list", {}, where)
    assert name in {row["name"] for row in listed["containers"]}
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert answer(tmp_path, "update_docker_container", {"name_or_id": name}, where)["updated"]
    arguments = {"action": "stop", "name_or_id": name}
    assert answer(tmp_path, "manage_container", arguments, where)["state"] == "exited"
    unknown = failure(tmp_path, "manage_container", {**arguments, "name_or_id": f"{name}x"}, where)
    assert unknown["code"] == "not_found" and name in unknown["hint"]


def test_an_image_that_did_not_change_changes_nothing(
    engine: Engine, containers: Containers, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    before = containers.state(name)
    assert update(tmp_path, engine, name) == {
        "name": name,
        "updated": False,
        "image": f"{app}:latest",
        "image_id": before["Image"].removeprefix("sha256:")[:12],
        "id": before["Id"][:12],
        "state": "running",
    }
    assert containers.state(name)["State"] == before["State"]


def test_without_pull_the_image_on_the_engine_is_used(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert not update(tmp_path, engine, name, pull_latest=False)["updated"]
    engine.client.pull(app, "latest")
    assert update(tmp_path, engine, name, pull_latest=False)["updated"]


def test_defaults_of_the_image_follow_the_new_image(
    engine: Engine, containers: Containers, registry: Registry, tmp_path: Path
) -> None:
    def version(number: str) -> dict[str, Any]:
        return {
            "Cmd": [*SLEEP[:2], f": {number}; {SLEEP[2]}"],
            "Env": ["PATH=/bin", f"VERSION={number}", f"MODE=image{number}"],
            "Labels": {"version": number, "owner": f"image{number}"},
            "WorkingDir": f"/work{number}",
            "User": f"100{number}",
            "ExposedPorts": {f"808{number}/tcp": {}},
            "Volumes": {f"/data{number}": {}},
            "StopSignal": "SIGTERM",
            "Healthcheck": {"Test": ["CMD", "/bin/true", number], "Interval": 200_000_000},
        }

    app = registry.put("team/app", files={"version": "1"}, **version("1"))
    engine.client.pull(app, "latest")
    name = containers(image=app, environment={"MODE": "own"}, labels={"owner": "own"})
    registry.put("team/app", files={"version": "2"}, **version("2"))
    update(tmp_path, engine, name)
    config = containers.state(name)["Config"]
    assert sorted(config["Env"]) == ["MODE=own", "PATH=/bin", "VERSION=2"]
    assert (config["Labels"]["version"], config["Labels"]["owner"]) == ("2", "own")
    assert (config["WorkingDir"], config["User"]) == ("/work2", "1002")
    assert config["Cmd"] == version("2")["Cmd"] and config["Healthcheck"] == version("2")["Healthcheck"]
    assert config["ExposedPorts"] == {"8082/tcp": {}} and config["Volumes"] == {"/data2": {}}
    assert config["Hostname"] == containers.state(name)["Id"][:12]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"entrypoint": ["/bin/sh", "-c"], "command": ["sleep 60; : mine"]}, (["/bin/sh", "-c"], ["sleep 60; : mine"])),
        ({"entrypoint": ["/bin/sleep", "60"]}, (["/bin/sleep", "60"], None)),
        ({"command": ["60"]}, (["/bin/sleep"], ["60"])),
        ({}, (["/bin/sleep"], ["62"])),
    ],
    ids=["both", "entry point alone", "command alone", "neither"],
)
def test_entry_point_and_command_are_kept_where_they_are_the_containers_own(
    given: dict[str, Any], kept: tuple[Any, Any], engine: Engine, containers: Containers, registry: Registry,
    tmp_path: Path,
) -> None:  # fmt: skip
    app = registry.put("team/app", Entrypoint=["/bin/sleep"], Cmd=["61"])
    engine.client.pull(app, "latest")
    name = containers(image=app, stop_timeout=0, **given)
    registry.put("team/app", Entrypoint=["/bin/sleep"], Cmd=["62"])
    assert update(tmp_path, engine, name)["updated"]
    config = containers.state(name)["Config"]
    assert (config["Entrypoint"], config["Cmd"] or None) == kept


def test_a_stopped_container_stays_stopped(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app, start=False)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert update(tmp_path, engine, name)["state"] == "created"
    assert containers.state(name)["State"]["StartedAt"].startswith("0001")
    assert family(containers, name) == [name]


BAD: dict[str, dict[str, Any]] = {
    "dies at once": {"Cmd": ["/bin/sh", "-c", "echo out of luck >&2; exit 9"]},
    "can't be started": {"Cmd": ["/no/such/program"]},
    "is unhealthy": {
        "Cmd": SLEEP,
        "Healthcheck": {"Test": ["CMD-SHELL", "echo sick; exit 1"], "Interval": 100_000_000, "Retries": 1},
    },
}


@pytest.mark.parametrize("kind", BAD)
def test_the_old_container_comes_back_when_the_new_one(
    kind: str, engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    before = containers.state(name)
    registry.put("team/app", files={"version": "2"}, **BAD[kind])
    error = refused(tmp_path, engine, name)
    assert error["code"] == "rolled_back", error
    said = {"dies at once": "out of luck", "can't be started": "/no/such/program", "is unhealthy": "sick"}[kind]
    assert said in str(error) and "sick" not in error["message"]
    after = containers.state(name)
    assert after["Id"] == before["Id"] and after["State"]["Running"]
    assert after["HostConfig"] == before["HostConfig"] and after["Config"] == before["Config"]
    assert family(containers, name) == [name]


def test_the_old_container_comes_back_when_time_is_up(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    before = containers.state(name)
    check = {"Test": ["CMD", "/bin/true"], "Interval": 3_600_000_000_000}
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP, Healthcheck=check)
    error = refused(tmp_path, engine, name, constraints={"timeout": 4})
    assert error["code"] == "deadline_exceeded", error
    after = containers.state(name)
    assert after["Id"] == before["Id"] and after["State"]["Running"]
    assert family(containers, name) == [name]


def test_a_deadline_while_the_old_container_is_slow_to_stop_leaves_it_running(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers("trap '' TERM; while :; do sleep 0.05; done", image=app, stop_timeout=4)
    before = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert refused(tmp_path, engine, name, constraints={"timeout": 2.5})["code"] == "deadline_exceeded"
    after = containers.state(name)
    assert after["Id"] == before["Id"] and after["State"]["Running"]
    assert after["State"]["StartedAt"] > before["State"]["StartedAt"], "the deadline was not while it stopped"
    with pytest.raises(AssertionError, match="not within"):
        until(lambda: not containers.state(name)["State"]["Running"], 4)
    assert family(containers, name) == [name]


def test_a_container_that_removes_itself_is_updated_and_comes_back(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app, host={"auto_remove": True}, volumes=["/data"])
    volume = containers.state(name)["Mounts"][0]["Name"]
    registry.put("team/app", files={"version": "2"}, **BAD["can't be started"])
    assert refused(tmp_path, engine, name)["code"] == "rolled_back"
    back = containers.state(name)
    assert back["State"]["Running"] and back["Mounts"][0]["Name"] == volume and back["HostConfig"]["AutoRemove"]
    containers.client.stop(name)
    until(lambda: family(containers, name) == [])
    engine.client.pull(app, "latest")
    registry.put("team/app", files={"version": "3"}, Cmd=SLEEP)
    name = containers(image=app, command=SLEEP, host={"auto_remove": True})
    assert update(tmp_path, engine, name)["updated"]
    assert containers.state(name)["HostConfig"]["AutoRemove"] and family(containers, name) == [name]
    engine.client.remove_volume(volume, force=True)


def test_what_can_not_be_updated_is_refused_untouched(
    engine: Engine, containers: Containers, app: str, tmp_path: Path
) -> None:
    about = engine.client.inspect_image(app)
    by_id = containers(image=about["Id"])
    by_digest = containers(image=about["RepoDigests"][0])
    swarm = containers(image=app, labels={"com.docker.swarm.task.id": "x"})
    paused = containers(image=app)
    engine.client.pause(paused)
    lender = containers(image=app)
    containers(image=app, host={"network_mode": f"container:{lender}"})
    reasons = {by_id: "image id", by_digest: "digest", swarm: "Swarm", paused: "paused", lender: "network of"}
    for name, reason in reasons.items():
        before = containers.state(name)["State"]
        error = refused(tmp_path, engine, name)
        assert error["code"] == "engine_refused" and reason in error["message"]
        assert containers.state(name)["State"] == before
    engine.client.unpause(paused)


def test_an_image_that_is_not_allowed_is_not_run(
    engine: Engine, containers: Containers, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    before = containers.state(name)["State"]
    error = refused(tmp_path, engine, name, constraints={"images": ["nginx"]})
    assert error["code"] == "image_not_allowed"
    assert containers.state(name)["State"] == before


def test_an_update_that_was_cut_off_is_taken_back_by_the_next(
    engine: Engine, containers: Containers, registry: Registry, app: str, tmp_path: Path
) -> None:
    name = containers(image=app)
    id = containers.state(name)["Id"]
    engine.client.stop(name)
    engine.client.rename(name, f"{name}.before-update")
    containers(image=app, name=f"{name}.update", start=False)
    error = refused(tmp_path, engine, name)
    assert error["code"] == "rolled_back" and "interrupted" in error["message"]
    assert containers.state(name)["Id"] == id and containers.state(name)["State"]["Running"]
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    assert update(tmp_path, engine, name)["updated"]
    assert family(containers, name) == [name]
    containers(image=app, name=f"{name}.before-update", start=False)
    error = refused(tmp_path, engine, name)
    assert f"docker rename {name}.before-update {name}" in error["hint"]
