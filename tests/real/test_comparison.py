"""Machines that really differ, compared with each other, and what really uses their CPU and memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from systemmanager.target import Target
from tests.conftest import need
from tests.real.debs import build
from tests.real.engines import Engines
from tests.real.machine import Machine, missing
from tests.real.machines import booted
from tests.real.openssh import SshServers, until
from tests.support import call

NAMES = ("box-01", "box-02", "box-03")
ALIKE = "dpkg -i /srv/test/sm-app_2.0_all.deb; systemctl daemon-reload; useradd -u 1500 -m -s /bin/sh ann"
UNLIKE = {
    "box-02": "dpkg --purge --force-depends createrepo-c; usermod -s /bin/bash ann; "
    "printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server 8099\\n' >/etc/systemd/system/miner.service; "
    "systemctl daemon-reload; systemctl start miner",
    "box-03": "dpkg -i /srv/test/sm-app_1.0_all.deb; systemctl start sm-steady; useradd -o -u 0 -M toor; userdel ann",
}


@dataclass(frozen=True)
class Boxes:
    """Three machines by name; targets of them, and one that is down."""

    machines: dict[str, Machine]
    targets: list[Target]

    def ask(self, folder: Path, tool: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What is said of all together, of each box, and of the one that is down."""
        reply = call(folder, tool, {"targets": "*", **arguments}, *self.targets)
        (down,) = (one["error"] for one in reply["results"] if one["target"] == "gone-01")
        return reply["across"], {one["target"]: one["data"] for one in reply["results"] if one["ok"]}, down


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    need("systemd", missing())
    with booted() as more:
        machines = dict(zip(NAMES, more(3), strict=True))
        for name, machine in machines.items():
            for version in ("1.0", "2.0"):
                build(machine.folder, version)
            machine.ssh(f"systemctl is-system-running --wait; {ALIKE}; {UNLIKE.get(name, 'true')}")
        (machines["box-03"].os_release).write_text('NAME="Debian"\nID="debian"\nPRETTY_NAME="Debian 7 (wheezy)"\n')
        limits = {"max_output_bytes": 4 * 1024 * 1024}
        targets = [machine.target(name, constraints=limits) for name, machine in machines.items()]
        gone = machines["box-01"].target("gone-01", connection={"port": 9})
        yield Boxes(machines, [*targets, gone])


def unlike(boxes: Boxes, folder: Path, what: str) -> dict[str, dict[str, Any]]:
    """The differences of each box; box-01 is as most are."""
    whole, each, down = boxes.ask(folder, "compare_targets", what=what)
    assert whole["compared"] == 3 and whole["items"] > 0 and "box-01" in whole["same"], whole
    assert sorted(whole["same"] + whole["different"]) == list(NAMES)
    assert down["code"] == "unreachable", down
    assert each["box-01"].keys() == {"total", "same"} and each["box-01"]["same"], each["box-01"]
    return each


def others(data: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    """What is otherwise than on most: None where it is missing."""
    return {one["name"]: (one.get("here"), one.get("most")) for one in data.get("differences", ())}


def test_packages(boxes: Boxes, tmp_path: Path) -> None:
    each = unlike(boxes, tmp_path, "packages")
    assert [name for name, (here, _) in others(each["box-02"]).items() if here is None] == ["createrepo-c"], each[
        "box-02"
    ]
    assert others(each["box-03"]) == {"sm-app": ("1.0", "2.0")}


def test_services(boxes: Boxes, tmp_path: Path) -> None:
    each = unlike(boxes, tmp_path, "services")
    assert others(each["box-02"]) == {"miner.service": ("active, static", None)}, each["box-02"]
    here, most = others(each["box-03"])["sm-steady.service"]
    assert (here, most) == ("active, disabled", "inactive, disabled")


def test_kernel(boxes: Boxes, tmp_path: Path) -> None:
    each = unlike(boxes, tmp_path, "kernel")
    assert each["box-02"]["same"], "they share this machine's kernel"
    ((name, (here, most)),) = others(each["box-03"]).items()
    assert name == "distribution" and here == "Debian 7 (wheezy)" != most


def test_users(boxes: Boxes, tmp_path: Path) -> None:
    each = unlike(boxes, tmp_path, "users")
    assert others(each["box-02"]) == {"ann": ("uid 1500, gid 1500, /bin/bash", "uid 1500, gid 1500, /bin/sh")}
    (ann, most), (toor, here) = ((name, found) for name, found in others(each["box-03"]).items())
    assert ann == "ann" and most[0] is None and toor == "toor" and str(here[0]).startswith("uid 0,") and here[1] is None


def test_ports(boxes: Boxes, tmp_path: Path) -> None:
    until(lambda: ":8099" in boxes.machines["box-02"].ssh("ss -ltn"), "it listens")
    each = unlike(boxes, tmp_path, "ports")
    assert others(each["box-02"]) == {"tcp/8099": ("all", None)} and each["box-03"]["same"], each


def test_containers(engines: Engines, ssh_servers: SshServers, tmp_path: Path) -> None:
    docker = engines(3)
    for number, engine in enumerate(docker):
        command = ["/bin/sleep", "600"]
        for name in ("web", "db") if number != 1 else ("web", "miner"):
            engine.client.create_container("systemmanager-test:1", command, name=name)
            if not (number == 2 and name == "db"):
                engine.client.start(name)
    targets = [
        ssh_servers.start().target(name, connection={"docker_socket": engine.socket})
        for name, engine in zip(NAMES, docker, strict=True)
    ]
    gone = ssh_servers.start()
    gone.stop()
    each = unlike(Boxes({}, [*targets, gone.target("gone-01")]), tmp_path, "containers")
    runs = "systemmanager-test:1, running"
    assert others(each["box-02"]) == {"db": (None, runs), "miner": (runs, None)}
    assert others(each["box-03"]) == {"db": ("systemmanager-test:1, created", runs)}


def test_who_uses_the_cpu_and_the_memory(boxes: Boxes, tmp_path: Path) -> None:
    """Each started on one machine: both are first over all of them."""
    busy, large = boxes.machines["box-02"], boxes.machines["box-03"]
    busy.ssh("cp /usr/bin/yes /usr/local/bin/cruncher; systemd-run --quiet --unit=cruncher -p StandardOutput=null "
             "/usr/local/bin/cruncher")  # fmt: skip
    held = "x = bytearray(300_000_000)\nimport time\ntime.sleep(600)"
    (large.folder / "hoard.py").write_text(held)
    large.ssh("systemd-run --quiet --unit=hoard /usr/bin/python3 /srv/test/hoard.py")
    try:
        until(lambda: int(large.ssh("ps -o rss= -C python3") or 0) > 280_000, "it holds the memory", 20)
        whole, each, down = boxes.ask(tmp_path, "top_consumers", limit=3)
    finally:
        busy.ssh("systemctl stop cruncher")
        large.ssh("systemctl stop hoard")
    first, most = whole["by_cpu"][0], whole["by_memory"][0]
    assert (first["target"], first["name"]) == ("box-02", "cruncher") and first["cpu"] > 20, whole["by_cpu"]
    assert (most["target"], most["name"]) == ("box-03", "python3") and most["rss"] > 280_000_000, whole["by_memory"]
    assert len(whole["by_cpu"]) == len(whole["by_memory"]) == 3
    assert list(each) == list(NAMES) and all(one.keys() == {"cpu", "cores", "load", "memory"} for one in each.values())
    assert down["code"] == "unreachable"
