"""Ping, ports and routes from the gateway's own machine, with the programs and without them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from systemmanager.operation import CATALOGUE
from tests.conftest import need
from tests.real.sites import closed_port, filtered_port, silent, tcp_site
from tests.support import call, run, target

LOCAL = target("local")


def answer(tmp_path: Path, tool: str, **arguments: Any) -> dict[str, Any]:
    """The data of one call's only result."""
    reply = call(tmp_path, tool, arguments, LOCAL)
    assert reply["ok"], reply
    data: dict[str, Any] = reply["results"][0]["data"]
    return data


def error(tmp_path: Path, tool: str, **arguments: Any) -> dict[str, Any]:
    reply = call(tmp_path, tool, arguments, LOCAL)
    found: dict[str, Any] = reply.get("error") or reply["results"][0]["error"]
    return found


@pytest.fixture
def without_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that lacks ping, traceroute and tracepath."""
    import systemmanager.executors.local as local

    monkeypatch.setattr(local, "find_program", lambda name: None)


def test_ping_counts_and_times_the_answers(tmp_path: Path) -> None:
    need("ping", None if shutil.which("ping") else "ping is not installed")
    data = answer(tmp_path, "ping_host", host="127.0.0.1", count=2)
    assert (data["method"], data["sent"], data["received"], data["loss_percent"]) == ("icmp", 2, 2, 0.0)
    assert 0 < data["min_ms"] <= data["avg_ms"] <= data["max_ms"] < 1000
    assert data["reachable"] is True and "note" not in data


def test_ping_takes_an_ipv6_address(tmp_path: Path) -> None:
    need("ping", None if shutil.which("ping") else "ping is not installed")
    assert answer(tmp_path, "ping_host", host="::1", count=1)["reachable"] is True


def test_a_name_that_does_not_resolve_is_a_dns_failure(tmp_path: Path) -> None:
    for tool, more in (("ping_host", {}), ("traceroute", {}), ("test_port_connectivity", {"port": 22})):
        assert error(tmp_path, tool, host="nosuch.invalid", **more)["code"] == "dns_failure", tool


@pytest.mark.usefixtures("without_programs")
def test_without_ping_another_way_is_used_and_named(tmp_path: Path) -> None:
    data = answer(tmp_path, "ping_host", host="127.0.0.1", count=3)
    assert data["method"] in ("icmp-unprivileged", "tcp")
    assert data["reachable"] is True and data["received"] == 3, "a refusal shows that the host is there"
    assert "ping is not installed" in data["note"]


@pytest.mark.usefixtures("without_programs")
def test_without_ping_a_name_that_does_not_resolve_is_still_a_dns_failure(tmp_path: Path) -> None:
    assert error(tmp_path, "ping_host", host="nosuch.invalid")["code"] == "dns_failure"


@pytest.mark.usefixtures("without_programs")
def test_without_traceroute_tcp_says_whether_the_host_is_reached(tmp_path: Path) -> None:
    data = answer(tmp_path, "traceroute", host="127.0.0.1")
    assert (data["method"], data["reached"]) == ("tcp", True)
    assert "traceroute is not installed" in data["note"] and "tracepath is not installed" in data["note"]


def test_traceroute_names_the_hops(tmp_path: Path) -> None:
    need("traceroute", None if shutil.which("traceroute") else "traceroute is not installed")
    data = answer(tmp_path, "traceroute", host="127.0.0.1", max_hops=3)
    assert data["method"] == "traceroute" and data["reached"] is True
    assert [(hop["n"], hop["address"]) for hop in data["hops"]] == [(1, "127.0.0.1")]


def test_ports_are_open_closed_or_filtered(tmp_path: Path) -> None:
    closed = closed_port()
    with tcp_site(silent) as open_, filtered_port() as filtered:
        data = answer(tmp_path, "test_port_connectivity", host="127.0.0.1", ports=[closed, open_, filtered], timeout=1)
    assert [(state["port"], state["state"]) for state in data["ports"]] == [
        (closed, "closed"),
        (open_, "open"),
        (filtered, "filtered"),
    ]
    assert data["open"] == 1
    assert data["ports"][0]["reason"] == "refused" and "no answer within 1 s" in data["ports"][2]["reason"]


def test_ports_are_tried_side_by_side(tmp_path: Path) -> None:
    with filtered_port() as one, filtered_port() as two, filtered_port() as three:
        reply = call(
            tmp_path, "test_port_connectivity", {"host": "127.0.0.1", "ports": [one, two, three], "timeout": 1}, LOCAL
        )
    assert reply["results"][0]["elapsed_ms"] < 2000


def test_a_host_with_both_families_is_reached_by_the_one_that_answers(tmp_path: Path) -> None:
    with tcp_site(silent) as port:
        data = answer(tmp_path, "test_port_connectivity", host="localhost", port=port)
    assert data["ports"][0]["state"] == "open", "the server has IPv4 only, localhost may have ::1 first"


@pytest.mark.parametrize("text", ["{0},{1}", "{0}, {1}", "{0}-{1}"])
def test_ports_may_be_written_as_text(tmp_path: Path, text: str) -> None:
    first = 40001
    data = answer(tmp_path, "test_port_connectivity", host="127.0.0.1", ports=text.format(first, first + 1))
    assert [state["port"] for state in data["ports"]] == [first, first + 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"port": 1, "ports": [2]},
        {"ports": []},
        {"ports": "1-65535"},
        {"ports": "22,http"},
        {"ports": [0]},
        {"ports": list(range(1, 102))},
        {"port": True},
    ],
    ids=str,
)
def test_wrong_ports_are_named(tmp_path: Path, arguments: dict[str, Any]) -> None:
    found = error(tmp_path, "test_port_connectivity", host="127.0.0.1", **arguments)
    assert found["code"] == "invalid_arguments" and "port" in found["message"]


@pytest.mark.parametrize("host", ["-c1", "a b", "2852039166", "0x7f000001", "10.1", "1.2.3.0x4", "a;id", "", "x" * 300])
def test_a_host_that_programs_could_read_otherwise_is_refused(tmp_path: Path, host: str) -> None:
    assert error(tmp_path, "ping_host", host=host)["code"] == "invalid_arguments"


UNPRIVILEGED = """
import asyncio
from pathlib import Path
from systemmanager.executors.local_network import LocalNetwork
from tests.support import target
class Permit: target, neighbours = target(), frozenset()
Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
print([one is not None for one in asyncio.run(LocalNetwork(Permit()).echo("127.0.0.1", 2))])
"""


def test_icmp_needs_no_privilege_where_the_kernel_permits_it() -> None:
    script = f"ip link set lo up && exec {sys.executable} -c '{UNPRIVILEGED}'"
    inside = ["unshare", "-rn", "sh", "-c", script]
    possible = shutil.which("unshare") and subprocess.run(["unshare", "-rn", "ip", "link"], capture_output=True)
    need("netns", None if possible and possible.returncode == 0 else "no network namespace can be made here")
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(inside, capture_output=True, text=True, timeout=30, cwd=root, check=False)
    assert done.stdout.strip() == "[True, True]", done.stderr


def test_ping_without_any_way_to_the_host_is_an_answer() -> None:
    from tests.support import FakeShell

    class Deaf(FakeShell):
        async def echo(self, host: str, count: int) -> list[float | None]:
            return [None] * count

    shell = Deaf(
        [{"argv": ["ping", "-n", "-c", "2", "-W", "2", "--", "192.0.2.1"], "status": 127, "stderr": "not found"}]
    )
    found: Any = run(CATALOGUE["ping_host"].function(shell, "192.0.2.1", 2))  # type: ignore[arg-type]
    assert (found.method, found.reachable, found.received, found.loss_percent) == ("icmp-unprivileged", False, 0, 100.0)
