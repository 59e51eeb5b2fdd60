"""Containers on a real engine, through the gateway: by the local target's socket and by a docker target's."""

from pathlib import Path

import pytest

from tests.real.docker_calls import KINDS, answer, failure, on
from tests.real.engine import Containers, Engine, until


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_tells_running_from_stopped(kind: str, engine: Engine, containers: Containers, tmp_path: Path) -> None:
    running = containers(
        "exec sleep 60",
        ports=[80, 81],
        host={"port_bindings": {80: ("127.0.0.1", None)}},
        labels={"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
    )
    stopped = containers("exit 3")
    until(lambda: containers.state(stopped)["State"]["Status"] == "exited")
    data = answer(tmp_path, "get_container_list", {}, on(engine, kind))
    rows = {row["name"]: row for row in data["containers"]}
    state = containers.state(running)
    port = state["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
    assert rows[running]["id"] == state["Id"][:12]
    assert rows[running]["state"] == "running"
    assert rows[running]["ports"] == [f"127.0.0.1:{port}->80/tcp", "81/tcp"]
    assert (rows[running]["project"], rows[running]["service"]) == ("shop", "web")
    assert rows[stopped]["state"] == "exited" and "ports" not in rows[stopped]
    assert list(rows).index(running) < list(rows).index(stopped)
    assert data["total"] >= 2 and data["running"] >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_stops_starts_and_restarts(
    kind: str, engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    name = containers("trap 'exit 7' TERM; while :; do sleep 0.05; done")
    where = on(engine, kind)
    stopped = answer(tmp_path, "manage_container", {"action": "stop", "name_or_id": name}, where)
    assert stopped == {"name": name, "state": "exited", "exit_code": 7}
    again = answer(tmp_path, "manage_container", {"action": "stop", "name_or_id": name}, where)
    assert again["state"] == "exited"
    started = answer(tmp_path, "manage_container", {"action": "start", "name_or_id": name}, where)
    assert started == {"name": name, "state": "running"}
    first = containers.state(name)["State"]["StartedAt"]
    restarted = answer(tmp_path, "manage_container", {"action": "restart", "name_or_id": name}, where)
    assert restarted["state"] == "running"
    assert containers.state(name)["State"]["StartedAt"] > first


def test_a_container_that_dies_at_once_is_not_called_started(
    engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    name = containers("echo no database >&2; sleep 0.3; exit 5", start=False)
    data = answer(tmp_path, "manage_container", {"action": "start", "name_or_id": name}, on(engine, "docker"))
    assert data["state"] == "exited" and data["exit_code"] == 5
    assert "died" in data["problem"] and data["logs"] == "no database"


def test_a_container_that_can_not_start_says_why(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    name = containers(["/no/such/program"], start=False)
    error = failure(tmp_path, "manage_container", {"action": "start", "name_or_id": name}, on(engine, "docker"))
    assert error["code"] in ("engine_refused", "not_found") and "/no/such/program" not in error["message"]
    assert "/no/such/program" in error["details"]["said"]


def test_an_unknown_container_names_what_is_near(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    name = containers(start=False)
    for action in ("start", "stop", "restart", "logs"):
        arguments = {"action": action, "name_or_id": name + "x"}
        error = failure(tmp_path, "manage_container", arguments, on(engine, "docker"))
        assert error["code"] == "not_found"
        assert name in error["hint"]


def test_logs_hold_both_streams_in_order(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    script = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done"
    name = containers(script)
    until(lambda: not containers.state(name)["State"]["Running"])
    arguments = {"action": "logs", "name_or_id": name}
    data = answer(tmp_path, "manage_container", arguments, on(engine, "docker"))
    assert data["logs"].split("\n") == ["out 1", "err 1", "out 2", "err 2", "out 3", "err 3"]
    last = answer(tmp_path, "manage_container", {**arguments, "lines": 2}, on(engine, "docker"))
    assert last["logs"] == "out 3\nerr 3"


def test_logs_that_go_elsewhere_are_told_as_that(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    name = containers("echo one", host={"log_config": {"Type": "none"}})
    error = failure(tmp_path, "manage_container", {"action": "logs", "name_or_id": name}, on(engine, "docker"))
    assert error["code"] == "engine_refused" and "logging driver" in error["hint"], error


def test_logs_of_a_terminal_are_read_as_they_are(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    name = containers("echo one; echo two", tty=True)
    until(lambda: not containers.state(name)["State"]["Running"])
    data = answer(tmp_path, "manage_container", {"action": "logs", "name_or_id": name}, on(engine, "docker"))
    assert data["logs"] == "one\ntwo"


def test_long_logs_are_cut_at_the_bound_and_keep_their_end(
    engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    name = containers("yes 'a line that fills the log, again and again' | head -n 4000; echo the end")
    until(lambda: not containers.state(name)["State"]["Running"])
    where = on(engine, "docker", constraints={"max_output_bytes": 4096})
    arguments = {"action": "logs", "name_or_id": name, "lines": 10_000}
    data = answer(tmp_path, "manage_container", arguments, where)
    assert data["logs"].endswith("the end")
    assert data["truncated"] and 1000 < len(data["logs"]) <= 4096


def test_output_that_is_no_text_is_answered(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    name = containers(r"printf '\377\033[31mred\033[0m\n'")
    until(lambda: not containers.state(name)["State"]["Running"])
    data = answer(tmp_path, "manage_container", {"action": "logs", "name_or_id": name}, on(engine, "docker"))
    assert "red" in data["logs"] and "\x1b" not in data["logs"]


def test_logs_need_no_right_to_control(engine: Engine, containers: Containers, tmp_path: Path) -> None:
    name = containers("echo hello; exec sleep 60")
    where = on(engine, "docker", capabilities=["container:read"])
    assert answer(tmp_path, "manage_container", {"action": "logs", "name_or_id": name}, where)["state"] == "running"
    assert (
        failure(tmp_path, "manage_container", {"action": "stop", "name_or_id": name}, where)["code"]
        == "capability_missing"
    )
    assert containers.state(name)["State"]["Running"]


@pytest.mark.parametrize("kind", KINDS)
def test_images_name_the_containers_made_from_them(
    kind: str, engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    name = containers(start=False)
    data = answer(tmp_path, "list_docker_images", {"limit": 1000}, on(engine, kind))
    row = next(row for row in data["images"] if containers.image in row.get("tags", []))
    assert name in row["containers"] and row["size"] > 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_networks_name_the_containers_attached(
    kind: str, engine: Engine, containers: Containers, tmp_path: Path
) -> None:
    network = containers.network(internal=True)
    name = containers(networking_config=engine.client.create_networking_config({network: {}}))
    data = answer(tmp_path, "get_docker_networks", {}, on(engine, kind))
    rows = {row["name"]: row for row in data["networks"]}
    subnet = engine.client.inspect_network(network)["IPAM"]["Config"][0]["Subnet"]
    assert rows[network]["containers"] == [name]
    assert (rows[network]["driver"], rows[network]["internal"], rows[network]["subnets"]) == ("bridge", True, [subnet])
    assert "internal" not in rows["bridge"]


@pytest.mark.parametrize("kind", KINDS)
def test_health_check_reaches_the_engine(kind: str, engine: Engine, tmp_path: Path) -> None:
    data = answer(tmp_path, "health_check", {}, on(engine, kind))
    assert data["status"] == "ok"
    if kind == "docker":
        assert data["answered"]["engine"] == engine.client.version()["Version"]
