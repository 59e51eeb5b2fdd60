"""Interfaces, counters and connections of a machine: the real one, and fixed facts for the order."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from systemmanager.operation import CATALOGUE
from systemmanager.ports import Connection, Interface, IoCounters
from tests.real.test_diagnostics import answer
from tests.support import run


class Fixed:
    """Facts as data."""

    async def interfaces(self) -> Sequence[Interface]:
        return [
            Interface(name="docker0", up=False, addresses=["172.17.0.1/16"], mtu=1500),
            Interface(name="veth1", up=True, addresses=[], mtu=1500),
            Interface(name="lo", up=True, addresses=["127.0.0.1/8"], mtu=65536),
            Interface(name="eth0", up=True, addresses=["192.0.2.2/24"], mtu=1500),
        ]

    async def counters(self) -> Sequence[IoCounters]:
        return [
            IoCounters(name=name, bytes_sent=sent, bytes_received=got, packets_sent=1, packets_received=1)
            for name, sent, got in (("eth0", 10, 20), ("eth1", 100, 200), ("lo", 9000, 9000))
        ]

    async def connections(self) -> Sequence[Connection]:
        return [
            Connection(protocol="udp", local="0.0.0.0:68", state=""),
            Connection(protocol="tcp", local="192.0.2.2:5000", remote="192.0.2.9:443", state="time_wait"),
            Connection(protocol="tcp", local="192.0.2.2:22", remote="192.0.2.9:40000", state="established"),
            Connection(protocol="tcp", local="127.0.0.1:25", state="listen"),
            Connection(protocol="tcp6", local="[::]:80", state="listen"),
            Connection(protocol="tcp", local="0.0.0.0:22", state="listen"),
        ]


def of_fixed(tool: str, **arguments: Any) -> Any:
    return run(CATALOGUE[tool].function(Fixed(), **arguments))  # type: ignore[arg-type]


def test_interfaces_that_are_in_use_come_first() -> None:
    assert [one.name for one in of_fixed("get_network_status").interfaces] == ["eth0", "lo", "veth1", "docker0"]


def test_the_sum_of_traffic_leaves_loopback_out() -> None:
    found = of_fixed("get_network_io_counters")
    assert (found.all.bytes_sent, found.all.bytes_received) == (110, 220)
    assert [one.name for one in found.interfaces] == ["lo", "eth1", "eth0"]


def test_what_listens_comes_first_then_who_is_connected() -> None:
    found = of_fixed("get_active_connections", limit=4)
    assert [one.local for one in found.connections] == ["0.0.0.0:22", "[::]:80", "127.0.0.1:25", "192.0.2.2:22"]
    assert found.total == 6 and found.truncated
    assert found.states == {"listen": 3, "established": 1, "time_wait": 1, "udp": 1}


def test_the_real_machine_answers(tmp_path: Path) -> None:
    status = answer(tmp_path, "get_network_status")
    loopback = next(one for one in status["interfaces"] if one["name"] == "lo")
    assert "127.0.0.1/8" in loopback["addresses"] and loopback["up"] and status["total"] == len(status["interfaces"])
    counters = answer(tmp_path, "get_network_io_counters")
    assert {one["name"] for one in counters["interfaces"]} == {one["name"] for one in status["interfaces"]}


def test_a_process_that_ends_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(process: psutil.Process) -> str:
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(psutil.Process, "name", gone)
    assert "connections" in answer(tmp_path, "get_active_connections")


def test_an_open_port_is_listed_with_its_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = answer(tmp_path, "get_active_connections", limit=1000)
    (own,) = [one for one in found["connections"] if one["local"] == f"127.0.0.1:{port}" and one["state"] == "listen"]
    assert own["pid"] == os.getpid() and own["process"]
