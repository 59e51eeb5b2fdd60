"""An update compared by inspection, field by field, for a container that uses everything; and cut at every step."""

import asyncio
import secrets
import socket
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from systemmanager.errors import ConnectionLost, GatewayError
from systemmanager.executors.docker import EngineDocker, engine_at
from systemmanager.executors.docker_client import forget
from systemmanager.operation import Access, Risk
from systemmanager.operations import container_update
from systemmanager.operations.container_update import update_docker_container
from systemmanager.request import Permit
from tests.real.docker_calls import on
from tests.real.engine import Containers, Engine
from tests.real.registry import Registry
from tests.support import run

SLEEP = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]
OF_THE_MOMENT = {
    "Id", "Created", "Image", "ResolvConfPath", "HostnamePath", "HostsPath", "LogPath", "State", "GraphDriver",
    "ExecIDs",
}  # fmt: skip
OF_THE_ENDPOINT = {"EndpointID", "NetworkID", "IPAddress", "Gateway", "MacAddress", "IPPrefixLen", "Links"}
CHANGES = ("act", "rename", "create", "connect", "remove")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_update, "SETTLE", 0.3)


async def port(engine: Engine, stack: AsyncExitStack) -> EngineDocker:
    where = on(engine)
    permit = Permit("test", where, (), Access((), (), Risk.CRITICAL), 60)
    stack.callback(forget)
    return await engine_at(f"unix://{engine.socket}", permit, stack)


def update(engine: Engine, name: str) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            assert (await update_docker_container(await port(engine, stack), name)).updated

    run(work())


def compared(state: dict[str, Any]) -> dict[str, Any]:
    """All of an inspection that an update has to keep."""
    kept = {name: value for name, value in state.items() if name not in OF_THE_MOMENT}
    short = state["Id"][:12]
    settings = kept.pop("NetworkSettings")
    kept["Ports"] = settings["Ports"]
    kept["Networks"] = {
        name: {
            **{field: value for field, value in endpoint.items() if field not in OF_THE_ENDPOINT},
            "Aliases": [alias for alias in endpoint["Aliases"] or [] if alias != short],
            "Links": endpoint["Links"] or [],
            **({"IPAddress": endpoint["IPAddress"]} if (endpoint["IPAMConfig"] or {}).get("IPv4Address") else {}),
        }
        for name, endpoint in settings["Networks"].items()
    }
    if kept["Config"]["MacAddress" if "MacAddress" in kept["Config"] else "Hostname"] == short:
        kept["Config"] = {**kept["Config"], "Hostname": "default"}
    kept["Mounts"] = sorted(kept["Mounts"], key=lambda mount: str(mount["Destination"]))
    return kept


def everything(containers: Containers, app: str, tmp: str) -> str:
    """A container that uses all that the engine lets one ask for here."""
    client = containers.client
    here = f"10.213.{secrets.randbelow(256)}"
    main = containers.network(ipam=_pool(f"{here}.0/25"))
    more = containers.network(ipam=_pool(f"{here}.128/25"))
    peer = containers(image=app, networking_config=client.create_networking_config({main: {}}))
    volume = containers.fresh()
    client.create_volume(volume)
    endpoint = client.create_endpoint_config(aliases=["shop", "www"], ipv4_address=f"{here}.70", links={peer: "cache"})
    name = containers(
        image=app,
        command=[*SLEEP[:2], f": own; {SLEEP[2]}"],
        entrypoint=["/bin/env"],
        environment={"A": "1", "B": "two words"},
        hostname="shop-host",
        domainname="lan",
        user="0:0",
        working_dir="/srv",
        labels={"com.docker.compose.project": "shop", "x": "y"},
        mac_address="02:42:0a:d5:07:99",
        ports=[8080, (53, "udp")],
        stdin_open=True,
        tty=True,
        stop_signal="SIGTERM",
        stop_timeout=3,
        volumes=["/anonymous"],
        healthcheck={"test": ["CMD", "/bin/true"], "interval": 200_000_000, "retries": 2},
        networking_config=client.create_networking_config({main: endpoint}),
        host=_host(client, main, volume, tmp),
    )
    client.connect_container_to_network(name, more, aliases=["second"], ipv4_address=f"{here}.180")
    return name


def _pool(subnet: str) -> dict[str, Any]:
    return {"Driver": "default", "Config": [{"Subnet": subnet}]}


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _host(client: Any, network: str, volume: str, tmp: str) -> dict[str, Any]:
    from docker.types import LogConfig, Mount, Ulimit

    return {
        "network_mode": network,
        "binds": [f"{tmp}:/bound:ro", f"{volume}:/named"],
        "mounts": [Mount("/mounted", None, type="volume"), Mount("/memory", None, type="tmpfs", tmpfs_size=65536)],
        "tmpfs": {"/scratch": "size=1m"},
        "port_bindings": {8080: ("127.0.0.1", _free_port()), "53/udp": ("127.0.0.1", _free_port())},
        "restart_policy": {"Name": "on-failure", "MaximumRetryCount": 4},
        "log_config": LogConfig(type="json-file", config={"max-size": "1m", "tag": "shop"}),
        "cap_add": ["NET_ADMIN"],
        "cap_drop": ["MKNOD"],
        "security_opt": ["no-new-privileges"],
        "mem_limit": "64m",
        "mem_reservation": "32m",
        "cpu_shares": 512,
        "cpu_period": 100_000,
        "cpu_quota": 50_000,
        "cpuset_cpus": "0",
        "pids_limit": 50,
        "ulimits": [Ulimit(name="nofile", soft=512, hard=1024)],
        "devices": ["/dev/null:/dev/zilch:rw"],
        "sysctls": {"net.ipv4.ip_unprivileged_port_start": "80"},
        "dns": ["10.213.7.1"],
        "dns_search": ["lan"],
        "dns_opt": ["ndots:2"],
        "extra_hosts": {"db": "10.213.7.5"},
        "group_add": ["4"],
        "ipc_mode": "shareable",
        "pid_mode": "host",
        "shm_size": 1_000_000,
        "oom_score_adj": 100,
        "init": True,
        "read_only": True,
        "runtime": "runc",
    }


def test_a_container_that_uses_everything_loses_nothing(
    engine: Engine, containers: Containers, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = registry.put("team/app", files={"version": "1"}, Cmd=SLEEP)
    engine.client.pull(app, "latest")
    name = everything(containers, app, str(tmp_path_factory.mktemp("bound")))
    before = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    update(engine, name)
    after = containers.state(name)
    assert after["Image"] != before["Image"] and after["Id"] != before["Id"]
    wanted, found = compared(before), compared(after)
    anonymous = {mount["Destination"]: mount["Name"] for mount in before["Mounts"] if mount["Type"] == "volume"}
    wanted["HostConfig"]["Binds"] = [*wanted["HostConfig"]["Binds"], f"{anonymous['/anonymous']}:/anonymous"]
    for mount in found["HostConfig"]["Mounts"]:
        if mount["Target"] == "/mounted":
            assert mount.pop("Source") == anonymous["/mounted"]
    for mount in (*wanted["Mounts"], *found["Mounts"]):
        if mount["Destination"] == "/anonymous":  # named now, so that it is the same volume
            mount.pop("Mode"), mount.pop("Propagation")
    wanted["HostConfig"]["Mounts"].sort(key=lambda mount: mount["Target"])
    found["HostConfig"]["Mounts"].sort(key=lambda mount: mount["Target"])
    for field in sorted(wanted):
        assert found[field] == wanted[field], field
    assert after["NetworkSettings"]["Networks"].keys() == before["NetworkSettings"]["Networks"].keys()
    assert after["Config"]["MacAddress"] == "02:42:0a:d5:07:99"


class Cut:
    """The Docker port on an engine that goes away at the n-th change: before its effect, or after it."""

    def __init__(self, docker: EngineDocker, at: int, after: bool, cancel: bool) -> None:
        self._docker, self._at, self._after, self._cancel = docker, at, after, cancel
        self._caller = asyncio.current_task()
        self.seen = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._docker, name)
        return self._counted(method) if name in CHANGES else method

    def _counted(self, method: Any) -> Any:
        async def change(*arguments: Any, **options: Any) -> Any:
            self.seen += 1
            cut = self.seen == self._at
            if cut and not self._after:
                await self._break()
            answer = await method(*arguments, **options)
            if cut and self._after:
                await self._break()
            return answer

        return change

    async def _break(self) -> None:
        if not self._cancel:
            raise ConnectionLost("the engine went away")
        assert self._caller is not None
        self._caller.cancel()
        await asyncio.sleep(0)


@pytest.mark.parametrize("cancel", [False, True], ids=["engine gone", "cancelled"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 7))
def test_cut_at_any_step_a_container_runs_under_the_name(
    at: int, after: bool, cancel: bool, engine: Engine, containers: Containers, registry: Registry
) -> None:
    app = registry.put("team/app", files={"version": "1"}, Cmd=SLEEP)
    engine.client.pull(app, "latest")
    name = containers(image=app)
    old = containers.state(name)
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)

    async def work() -> Cut:
        async with AsyncExitStack() as stack:
            docker = Cut(await port(engine, stack), at, after, cancel)
            with suppress(GatewayError, asyncio.CancelledError):
                await update_docker_container(docker, name)
            return docker

    cut = run(work())
    assert cut.seen >= at, "the update has fewer steps: this case tests nothing"
    now = containers.state(name)
    assert now["State"]["Running"]
    rows = containers.client.containers(all=True, filters={"name": name})
    assert [row["Names"] for row in rows] == [[f"/{name}"]], "something is left over"
    assert (now["Id"] == old["Id"]) == (at < 6), "the old one until the new one has proved itself"


def test_a_network_that_the_container_left_is_not_joined_again(
    engine: Engine, containers: Containers, registry: Registry
) -> None:
    app = registry.put("team/app", files={"version": "1"}, Cmd=SLEEP)
    engine.client.pull(app, "latest")
    name, network = containers(image=app), containers.network()
    engine.client.connect_container_to_network(name, network, aliases=["www"])
    engine.client.disconnect_container_from_network(name, "bridge")
    registry.put("team/app", files={"version": "2"}, Cmd=SLEEP)
    update(engine, name)
    networks = containers.state(name)["NetworkSettings"]["Networks"]
    assert list(networks) == [network] and "www" in networks[network]["Aliases"]
