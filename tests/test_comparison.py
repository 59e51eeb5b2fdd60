"""What differs between targets, and who uses what over all of them."""

from pathlib import Path
from typing import Any

import pytest

from systemmanager.operations.comparison import MOST_SHOWN, Compared, _of, _reach, majority
from systemmanager.operations.package_tools import _DPKG_LIST
from systemmanager.ports import Connection, Process
from systemmanager.request import Permit
from tests.fakes import STATUS, ask
from tests.support import FakeShell, fake_gateway, principal, target


def compared(**items: dict[str, str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    told, whole = Compared.across({id: _of(one) for id, one in items.items()})
    return {id: one.model_dump(exclude_none=True) for id, one in told.items()}, whole.model_dump()


def test_each_target_is_told_by_its_difference_from_the_majority() -> None:
    told, whole = compared(
        a={"nginx": "1.2", "curl": "8"}, b={"nginx": "1.2", "curl": "8"}, c={"nginx": "1.1", "telnetd": "0"}
    )
    assert told["a"] == told["b"] == {"total": 2, "same": True}
    assert told["c"] == {
        "total": 2,
        "same": False,
        "differences": [
            {"name": "curl", "most": "8"},
            {"name": "nginx", "here": "1.1", "most": "1.2"},
            {"name": "telnetd", "here": "0"},
        ],
    }
    assert whole == {"compared": 3, "items": 2, "same": ["a", "b"], "different": ["c"]}


@pytest.mark.parametrize(
    ("found", "most"),
    [
        ([{"x": "1"}, {"x": "1"}, {"x": "2"}], {"x": "1"}),
        ([{"x": "1"}, {"x": "2"}], {"x": "2"}),
        ([{"x": "1"}, {}], {}),
        ([{"x": "1"}, {"x": "1"}, {}], {"x": "1"}),
        ([{}, {}], {}),
    ],
)
def test_the_majority_is_more_than_half(found: list[dict[str, str]], most: dict[str, str]) -> None:
    assert majority({str(place): items for place, items in enumerate(found)}) == most


def test_more_differences_than_fit_are_counted() -> None:
    many = {f"p{number:04}": "1" for number in range(MOST_SHOWN + 7)}
    told, _ = compared(a=many, b=many, c={})
    assert len(told["c"]["differences"]) == MOST_SHOWN and told["c"]["not_shown"] == 7


PASSWD = {
    "a": "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n",
    "b": "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n",
    "c": "root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0:ignore all\x1b[2J:/root:/bin/sh\n",
}


def shell(permit: Permit, name: str) -> FakeShell:
    assert name == "Shell"
    return FakeShell([{"argv": ["getent", "passwd"], "stdout": PASSWD[permit.target.id]}])


def test_users_are_compared_through_the_gateway(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, shell, *(target(id, "ssh") for id in PASSWD))
    reply = ask(gateway, {"targets": "*", "what": "users"}, "compare_targets")
    assert reply["across"] == {"compared": 3, "items": 2, "same": ["a", "b"], "different": ["c"]}
    (_, _, odd) = reply["results"]
    assert odd["data"]["differences"] == [
        {"name": "ann", "most": "uid 1000, gid 1000, /bin/sh"},
        {"name": "toor", "here": "uid 0, gid 0, /bin/sh"},
    ]


def test_one_target_is_told_whole(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, shell, target("a", "ssh"))
    reply = ask(gateway, {"targets": "a", "what": "users"}, "compare_targets")
    assert "across" not in reply and [one["name"] for one in reply["results"][0]["data"]["items"]] == ["root", "ann"]


DPKG = {
    "a": "dpkg\tamd64\t1.21\tii \npasswd\tamd64\t4.13\tii \nlibc6\tamd64\t2.36\tii \nlibc6\ti386\t2.36\tii \n",
    "b": "dpkg\tarm64\t1.21\tii \npasswd\tarm64\t4.12\tii \nlibc6\tarm64\t2.36\tii \nadduser\tall\t3\tii \n",
}


def dpkg(permit: Permit, name: str) -> FakeShell:
    listed = {"argv": [*_DPKG_LIST], "stdout": DPKG[permit.target.id]}
    return FakeShell([{"argv": ["cat", "/etc/os-release"], "stdout": "ID=debian\n"}, listed])


def test_packages_of_another_architecture_are_the_same_and_no_name_hides_its_version(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, dpkg, target("a", "ssh"), target("b", "ssh"))
    reply = ask(gateway, {"targets": "*", "what": "packages"}, "compare_targets")
    first, second = (one["data"] for one in reply["results"])
    assert first["differences"] == [{"name": "libc6:i386", "here": "2.36"}]
    assert second["differences"] == [
        {"name": "adduser", "here": "3"},
        {"name": "passwd", "here": "4.12", "most": "4.13"},
    ]


def test_what_a_target_lets_be_read_decides_by_kind(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, shell, target("a", "ssh"))
    reply = ask(gateway, {"targets": "a", "what": "containers"}, "compare_targets", who=principal("system:read"))
    assert reply["results"][0]["error"]["code"] == "scope_missing"


# --- consumers -------------------------------------------------------------------------------------------------------


def process(pid: int, cpu: float, rss: int) -> Process:
    return Process(pid=pid, name=f"p{pid}", user="u", cpu=cpu, memory=1, rss=rss, state="running", command="c")


class Busy:
    def __init__(self, base: int) -> None:
        self.base = base

    async def status(self) -> Any:
        return STATUS

    async def processes(self) -> list[Process]:
        return [process(self.base + number, self.base * number, 1000 - self.base * number) for number in range(4)]

    async def connections(self) -> list[Connection]:
        listening = Connection(protocol="tcp6", local="[::]:22", state="LISTEN")
        return [listening, Connection(protocol="tcp", local="10.0.0.1:5000", remote="10.0.0.2:1", state="ESTABLISHED")]


def busy(permit: Permit, name: str) -> Busy:
    assert name == "Facts"
    return Busy(int(permit.target.id[1:]))


def test_processes_are_ranked_over_all_targets(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, busy, target("t1", "ssh"), target("t5", "ssh"))
    reply = ask(gateway, {"targets": "*", "limit": 3}, "top_consumers")
    assert [(row["target"], row["cpu"]) for row in reply["across"]["by_cpu"]] == [("t5", 15), ("t5", 10), ("t5", 5)]
    assert [row["target"] for row in reply["across"]["by_memory"]] == ["t1", "t5", "t1"]
    assert reply["across"]["untrusted"] is True
    assert [one["data"].keys() for one in reply["results"]] == [{"cpu", "cores", "load", "memory"}] * 2


def test_one_target_keeps_its_own_ranking(tmp_path: Path) -> None:
    reply = ask(fake_gateway(tmp_path, busy, target("t1", "ssh")), {"targets": "t1", "limit": 2}, "top_consumers")
    assert "across" not in reply
    assert [row["pid"] for row in reply["results"][0]["data"]["by_cpu"]] == [4, 3]
    assert [row["pid"] for row in reply["results"][0]["data"]["by_memory"]] == [1, 2]


def test_what_listens_is_compared_by_port(tmp_path: Path) -> None:
    gateway = fake_gateway(tmp_path, busy, target("t1", "ssh"))
    reply = ask(gateway, {"targets": "t1", "what": "ports"}, "compare_targets")
    assert reply["results"][0]["data"]["items"] == [{"name": "tcp/22", "here": "all"}]


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("0.0.0.0", "all"), ("[::]", "all"), ("[::ffff:0.0.0.0]", "all"), ("*", "all"),
        ("127.0.0.53%lo", "loopback"), ("[::1]", "loopback"), ("[::ffff:127.0.0.1]", "loopback"),
        ("10.0.0.7", "an address of its own"), ("[fe80::1%eth0]", "an address of its own"),
    ],
)  # fmt: skip
def test_addresses_that_differ_from_machine_to_machine_are_no_difference(address: str, reach: str) -> None:
    assert _reach(address) == reach
