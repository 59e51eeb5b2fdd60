"""What diagnostics reach, from the gateway's own machine and from an SSH target: judged addresses and nothing else.

Names come from a name server of the test's own, which changes its mind, mixes good and bad, and hides behind aliases;
whatever is sent to the sink is counted.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from systemmanager.addresses import parse
from systemmanager.errors import Denied
from systemmanager.executors.egress import Egress
from systemmanager.executors.local_network import LocalNetwork, is_own
from systemmanager.executors.ssh_resolve import candidates, in_hosts_file
from systemmanager.target import Target
from tests.conftest import need
from tests.real.openssh import SshServer, SshServers
from tests.real.sink import Sink, own_loopback, sink
from tests.real.sites import Resolver, Zone, http_site, resolver, silent, tcp_site
from tests.support import call, permitted, registry, run, target

GOOD = "127.0.0.1"


@pytest.fixture
def bad() -> Iterator[Sink]:
    with sink() as made:
        yield made
        assert made.packets == 0, "something was sent to the address that nothing may reach"


def changing(first: str, later: str) -> Callable[[], list[str]]:
    """An answer that is another one from the second time on: DNS rebinding."""
    answers = iter([first])
    return lambda: [next(answers, later)]


def zone(bad: Sink) -> Zone:
    six = "64:ff9b::" + "{:x}:{:x}".format(*_halves(bad.address))
    return {
        ("bad.test.", "A"): [bad.address],
        ("rebind.test.", "A"): changing(GOOD, bad.address),
        ("mixed.test.", "A"): [GOOD, bad.address],
        ("families.test.", "A"): [GOOD],
        ("families.test.", "AAAA"): [six],
        ("chain.test.", "CNAME"): ["next.test."],
        ("next.test.", "CNAME"): ["last.test."],
        ("last.test.", "A"): [bad.address],
        ("metadata.test.", "A"): ["169.254.169.254"],
        ("six.test.", "AAAA"): ["fd00:ec2::254"],
        ("lan.test.", "A"): ["10.66.66.66"],
        ("good.test.", "A"): [GOOD],
        ("good.next.", "A"): [GOOD],
    }


def _halves(address: str) -> tuple[int, int]:
    parts = [int(part) for part in address.split(".")]
    return parts[0] << 8 | parts[1], parts[2] << 8 | parts[3]


REFUSED = ("bad.test", "mixed.test", "families.test", "chain.test", "metadata.test", "six.test", "lan.test")
OPEN: dict[str, Any] = {"constraints": {"hosts": ["*", GOOD]}}


def tools(host: str, port: int) -> Mapping[str, dict[str, Any]]:
    """Every way to reach a host."""
    return {
        "ping_host": {"host": host, "count": 1},
        "traceroute": {"host": host, "max_hops": 2},
        "test_port_connectivity": {"host": host, "ports": [port, 80]},
        "check_ssl_certificate": {"host": host, "port": port},
        "http_request_test": {"url": f"http://{host}:{port}/"},
    }


# --- over a real SSH target whose names come from the test's name server ----------------------------------------------


@pytest.fixture
def names(tmp_path: Path, bad: Sink) -> Iterator[Resolver]:
    with resolver(tmp_path, address=own_loopback(53), zone=zone(bad), port=53) as server:
        yield server


def with_names(names: Resolver) -> tuple[str, ...]:
    """Starts a program that sees another /etc/resolv.conf."""
    possible = shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    need("namespaces", None if possible else "no mount namespace can be made here")
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ("unshare", "-m", "--propagation", "private", "sh", "-c", script, str(names.resolv_conf))


@pytest.fixture
def server(ssh_servers: SshServers, names: Resolver) -> SshServer:
    return ssh_servers.start(before=with_names(names))


@pytest.fixture(params=["getent", "hosts file and DNS"])
def either(request: pytest.FixtureRequest, ssh_servers: SshServers, names: Resolver) -> SshServer:
    """A target that runs programs, and one that lets nothing but SFTP and connections through."""
    lines = () if request.param == "getent" else ("ForceCommand internal-sftp",)
    return ssh_servers.start(*lines, before=with_names(names))


def result(tmp_path: Path, one: Target, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = call(tmp_path, tool, {**arguments, "target": one.id}, one)["results"][0]
    return found


@pytest.mark.ssh
@pytest.mark.parametrize("host", REFUSED)
def test_a_name_with_a_bad_address_is_refused_over_ssh(tmp_path: Path, server: SshServer, bad: Sink, host: str) -> None:
    for tool, arguments in tools(host, bad.port).items():
        error = result(tmp_path, server.target(**OPEN), tool, arguments)["error"]
        assert error["code"] == "host_not_allowed", tool
        assert host in error["message"] and "constraints.hosts of 'web-01'" in error["hint"], tool


@pytest.mark.ssh
def test_names_are_refused_and_reached_with_and_without_programs(
    tmp_path: Path, either: SshServer, bad: Sink, names: Resolver
) -> None:
    one = either.target(**OPEN)
    for host in REFUSED:
        error = result(tmp_path, one, "test_port_connectivity", {"host": host, "port": bad.port})["error"]
        assert error["code"] == "host_not_allowed", host
    with tcp_site(silent) as port:
        for host in ("good.test", "rebind.test"):
            data = result(tmp_path, one, "test_port_connectivity", {"host": host, "ports": [port, port + 1, 80]})[
                "data"
            ]
            assert data["ports"][0]["state"] == "open", host
    again = result(tmp_path, one, "test_port_connectivity", {"host": "rebind.test", "port": bad.port})
    assert again["error"]["code"] == "host_not_allowed", "every call resolves for itself"
    missing = result(tmp_path, one, "test_port_connectivity", {"host": "nosuch.test", "port": 80})
    assert missing["error"]["code"] == "dns_failure"


@pytest.mark.ssh
def test_a_private_network_is_opened_by_name_by_glob_and_by_block_over_ssh(tmp_path: Path, server: SshServer) -> None:
    for hosts in (["lan.test"], ["*.test"], ["10.66.0.0/16"]):
        one = server.target(constraints={"hosts": hosts})
        found = result(tmp_path, one, "test_port_connectivity", {"host": "lan.test", "port": 9, "timeout": 0.2})
        assert found["ok"], found


@pytest.fixture
def lan_address() -> Iterator[str]:
    """A private address of this machine."""
    need("ip", None if os.geteuid() == 0 and shutil.which("ip") else "addresses are only added by root, with ip")
    address = own_loopback(0).replace("127.", "10.", 1)
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield address
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


@pytest.mark.ssh
def test_connectivity_to_a_database_at_home_is_tested_once_it_is_allowed(
    tmp_path: Path, ssh_servers: SshServers, lan_address: str
) -> None:
    """`Test connectivity to database.home.lab:5432`: refused with what to write, and that is all there is to do."""
    home: Zone = {("database.home.lab.", "A"): [lan_address]}
    asked = {"host": "database.home.lab", "port": 5432}
    with resolver(tmp_path, address=own_loopback(53), zone=home, port=53) as names, socket.socket() as database:
        database.bind((lan_address, 5432))
        database.listen()
        server = ssh_servers.start(before=with_names(names))
        error = result(tmp_path, server.target(constraints={"hosts": ["*"]}), "test_port_connectivity", asked)["error"]
        assert error["code"] == "host_not_allowed"
        named = error["hint"].removeprefix("It would need ").partition(" in constraints.hosts")[0]
        for hosts in (["database.home.lab"], [named], ["*", named]):
            found = result(tmp_path, server.target(constraints={"hosts": hosts}), "test_port_connectivity", asked)
            assert found["ok"] and found["data"]["ports"][0]["state"] == "open", found


@pytest.mark.ssh
def test_a_machines_own_address_is_not_reached_through_it(
    tmp_path: Path, ssh_servers: SshServers, lan_address: str
) -> None:
    server = ssh_servers.start(host=lan_address)
    web, here = server.target(constraints={"hosts": None}), target("local", constraints={"hosts": None})
    for one in (web, here):
        for host in (lan_address, GOOD, "localhost"):
            arguments = {"host": host, "port": server.port, "target": one.id}
            found = call(tmp_path, "test_port_connectivity", arguments, web, here)["results"][0]
            assert found["error"]["code"] == "host_not_allowed", (one.id, host)


# --- from the gateway's own machine -----------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
from tests.support import call, target
one = target("local", constraints={"hosts": json.loads(sys.argv[1])})
for tool, arguments in json.loads(sys.argv[2]):
    print(json.dumps(call(Path(sys.argv[3]), tool, arguments, one)["results"][0]))
"""


def locally(
    tmp_path: Path, names: Resolver, hosts: list[str] | None, calls: list[tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The results of calls on the gateway's own machine, in a process whose names come from the test's name server."""
    command = [*with_names(names), sys.executable, "-c", SCRIPT, json.dumps(hosts), json.dumps(calls), str(tmp_path)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_name_with_a_bad_address_is_refused_locally(tmp_path: Path, names: Resolver, bad: Sink) -> None:
    calls = [(tool, arguments) for host in REFUSED for tool, arguments in tools(host, bad.port).items()]
    found = locally(tmp_path, names, ["*", GOOD], calls)
    assert [one["error"]["code"] for one in found] == ["host_not_allowed"] * len(calls)


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_judged(
    tmp_path: Path, names: Resolver, bad: Sink
) -> None:
    with http_site({"/": (200, {}, b"hi")}) as site:
        first, second = locally(
            tmp_path, names, ["*", GOOD], [("http_request_test", {"url": f"http://rebind.test:{site.port}/"})] * 2
        )
    assert first["data"]["status"] == 200 and second["error"]["code"] == "host_not_allowed"
    ((_, _, headers),) = site.seen
    assert headers["host"] == f"rebind.test:{site.port}"


def network(resolve: Callable[[str], list[str]], hosts: list[str] | None, **fields: Any) -> LocalNetwork:
    async def resolved(host: str) -> list[str]:
        return resolve(host)

    one = target("local", constraints={"hosts": hosts, **fields.pop("constraints", {})})
    permit = permitted("test_port_connectivity", one, {"host": "a", "port": 80}, **fields)
    return LocalNetwork(permit, resolve=resolved)


@pytest.mark.parametrize(
    "answer",
    ["0x7f.1", "127.1", "2130706433", "::ffff:127.0.0.1", "fe80::1%lo", "not an address", "0.0.0.0", "ff02::1"],
)
def test_what_a_resolver_answers_is_judged_in_any_spelling(answer: str) -> None:
    from systemmanager.errors import TargetError

    with pytest.raises(TargetError) as caught:
        run(network(lambda _: [answer], None).connect("evil.example", 80, 5))
    assert caught.value.code == ("dns_failure" if answer == "not an address" else "host_not_allowed")


def test_a_name_is_resolved_once_per_call_however_often_it_is_used() -> None:
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return [GOOD] if len(asked) == 1 else ["169.254.169.254"]

    one = network(resolve, ["*", GOOD])

    async def work() -> None:
        for port in (1, 2):
            with pytest.raises(Exception, match="refused"):
                await one.connect("rebind.example", port, 5)

    run(work())
    assert asked == ["rebind.example"]


def test_the_sink_counts_what_is_sent_to_it() -> None:
    with sink() as made, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert made.packets == 0
        udp.sendto(b"x", (made.address, 9))
        socket.create_connection((made.address, made.port)).close()
        assert made.packets >= 4


def test_an_address_of_this_machine_is_its_own() -> None:
    assert is_own(_address(GOOD)) and is_own(_address("::1"))
    assert not is_own(_address("192.0.2.1"))


def _address(text: str) -> Any:
    found = parse(text)
    assert found is not None
    return found


def test_every_port_that_is_tried_is_among_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ping without the ping program knocks at ports: those of the target only."""
    import systemmanager.executors.local as local

    monkeypatch.setattr(local, "find_program", lambda name: None)

    async def no_echo(*_: Any) -> Any:
        from systemmanager.errors import Unsupported

        raise Unsupported("no ICMP")

    monkeypatch.setattr(LocalNetwork, "echo", no_echo)
    hosts = {"hosts": [GOOD]}
    some = result(tmp_path, target("local", constraints={**hosts, "ports": [80]}), "ping_host", {"host": GOOD})
    assert some["data"]["port"] == 80
    for tool in ("ping_host", "traceroute"):
        none = result(tmp_path, target("local", constraints={**hosts, "ports": [8080]}), tool, {"host": GOOD})
        assert none["error"]["code"] == "port_not_allowed"


def test_a_lan_is_closed_until_it_is_opened_or_its_host_is_a_target(tmp_path: Path) -> None:
    here = target("local", constraints={"hosts": None})
    neighbour = target("db", "ssh", connection={"host": "10.66.66.66", "username": "me"})
    ask = ("test_port_connectivity", {"host": "10.66.66.66", "port": 9, "timeout": 0.2})
    assert call(tmp_path, *ask, here)["results"][0]["error"]["code"] == "host_not_allowed"
    assert call(tmp_path, *ask, here, neighbour)["ok"]
    opened = target("local", constraints={"hosts": ["10.66.0.0/16"]})
    assert call(tmp_path, *ask, opened)["ok"]


def test_neighbours_are_the_targets_that_the_callers_grants_hold() -> None:
    from systemmanager.request import Grant

    known = registry(
        target("db", "ssh", connection={"host": "10.0.0.5", "username": "me"}),
        target("web", "ssh", connection={"host": "WEB.lan", "username": "me"}),
        target("engine", "docker", connection={"host": "tcp://10.0.0.6:2376", "cert_path": "/x"}),
        target("api", "http", connection={"base_url": "https://[fd00::0:5]:8443/x"}),
        target("local"),
    )
    everything = Grant(frozenset(), None)
    assert known.hosts([everything]) == {"10.0.0.5", "web.lan", "10.0.0.6", "fd00::5"}
    assert known.hosts([Grant(frozenset(), "db")]) == {"10.0.0.5"}
    assert known.hosts([]) == frozenset()


def test_a_literal_is_dialled_as_it_was_judged() -> None:
    asked: list[str] = []

    async def never(host: str) -> list[str]:
        asked.append(host)
        return []

    permit = permitted("ping_host", target("local", constraints={"hosts": ["127.0.0.0/8"]}), {"host": GOOD})
    assert run(Egress(permit, never).addresses("0x7f.1")) == (GOOD,)
    with pytest.raises(Denied):
        run(Egress(permit, never).addresses("[::ffff:a9fe:a9fe]"))
    assert asked == []


# --- the target's files ----------------------------------------------------------------------------------------------


def test_a_hosts_file_is_read_as_hosts_5_says() -> None:
    text = "127.0.0.1 localhost # local\n10.0.0.5\tdb.lan DB\n::1 localhost\n# 10.0.0.6 gone\n10.0.0.5 db\n"
    assert in_hosts_file(text, "LOCALHOST.") == ["127.0.0.1", "::1"]
    assert in_hosts_file(text, "db") == ["10.0.0.5"]
    assert in_hosts_file(text, "10.0.0.5") == in_hosts_file(text, "gone") == []


@pytest.mark.parametrize(
    ("conf", "host", "names"),
    [
        ("search lan home.lab\n", "db", ["db.lan.", "db.home.lab.", "db."]),
        ("search lan\n", "db.x", ["db.x.", "db.x.lan."]),
        ("domain a\nsearch b\n", "db", ["db.b.", "db."]),
        ("search lan\n", "db.", ["db."]),
        ("", "db", ["db."]),
    ],
)
def test_short_names_are_completed_as_resolv_conf_5_says(conf: str, host: str, names: list[str]) -> None:
    assert [name.to_text() for name in candidates(conf, host)] == names
