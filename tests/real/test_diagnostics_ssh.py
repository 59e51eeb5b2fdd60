"""Every diagnostic over a real SSH target: what it reaches, it reaches from there."""

from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest

from systemmanager.executors import Executors, Surroundings
from systemmanager.operation import CATALOGUE
from systemmanager.operations.diagnostics import by_tcp
from systemmanager.request import Permit
from systemmanager.target import Target
from tests.real.openssh import SshServer, SshServers
from tests.real.sites import Pki, closed_port, filtered_port, http_site, resolver, silent, tcp_site
from tests.support import call, permitted, run

pytestmark = pytest.mark.ssh


def result(tmp_path: Path, server: SshServer, tool: str, **arguments: Any) -> dict[str, Any]:
    """The one result of a call on the server."""
    reply = call(tmp_path, tool, {**arguments, "target": "web-01"}, server.target())
    found: dict[str, Any] = reply["results"][0]
    return found


def owner_of(port: int) -> int | None:
    """The process that has a connection from this local port."""
    found = psutil.net_connections(kind="tcp")
    return next((one.pid for one in found if one.laddr and one.laddr[1] == port and one.status != "TIME_WAIT"), None)


def test_http_goes_out_from_the_target(tmp_path: Path, ssh_server: SshServer) -> None:
    owners: list[int | None] = []

    def page(request: BaseHTTPRequestHandler) -> None:
        owners.append(owner_of(request.client_address[1]))
        request.send_response(200)
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"hi")

    with http_site({"/": page}) as site:
        found = result(tmp_path, ssh_server, "http_request_test", url=f"http://127.0.0.1:{site.port}/")
    assert found["data"]["status"] == 200 and found["data"]["body"] == "hi"
    (owner,) = owners
    assert owner is not None and psutil.Process().pid != owner, "the connection is sshd's, not the gateway's"


def test_ports_are_told_apart_from_there(tmp_path: Path, ssh_server: SshServer) -> None:
    closed = closed_port()
    with tcp_site(silent) as open_, filtered_port() as filtered:
        ports = [open_, closed, filtered]
        found = result(tmp_path, ssh_server, "test_port_connectivity", host="127.0.0.1", ports=ports, timeout=1)
    assert [state["state"] for state in found["data"]["ports"]] == ["open", "closed", "filtered"]
    unknown = result(tmp_path, ssh_server, "test_port_connectivity", host="nosuch.invalid", port=80)
    assert unknown["error"]["code"] == "dns_failure"


def test_a_certificate_is_read_through_the_channel(tmp_path: Path, ssh_server: SshServer) -> None:
    pki = Pki.make(tmp_path)
    with http_site({}, tls=pki.self_signed) as site:
        found = result(tmp_path, ssh_server, "check_ssl_certificate", host="127.0.0.1", port=site.port)
    assert found["data"]["valid"] is False and found["data"]["problems"] == ["self_signed"]


def test_ping_and_traceroute_run_there(tmp_path: Path, ssh_server: SshServer) -> None:
    ping = result(tmp_path, ssh_server, "ping_host", host="127.0.0.1", count=1)
    assert ping["data"]["reachable"] is True and ping["data"]["method"] in ("icmp", "tcp")
    assert result(tmp_path, ssh_server, "traceroute", host="127.0.0.1", max_hops=2)["data"]["reached"] is True
    assert result(tmp_path, ssh_server, "ping_host", host="nosuch.invalid")["error"]["code"] == "dns_failure"


def test_network_facts_come_from_there(tmp_path: Path, ssh_server: SshServer) -> None:
    status = result(tmp_path, ssh_server, "get_network_status")["data"]
    assert any("127.0.0.1/8" in one["addresses"] for one in status["interfaces"])
    assert result(tmp_path, ssh_server, "get_network_io_counters")["data"]["interfaces"]
    listening = result(tmp_path, ssh_server, "get_active_connections", limit=1000)["data"]["connections"]
    assert f"{ssh_server.host}:{ssh_server.port}" in [one["local"] for one in listening if one["state"] == "listen"]


class At:
    """A target's Network with another resolver than its resolv.conf names."""

    def __init__(self, network: Any, port: int) -> None:
        self._network = network
        network.dns_port = port

    async def nameservers(self) -> Sequence[str]:
        return ["127.0.0.1"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def permit(target: Target) -> Permit:
    return permitted("dns_lookup", target, {"domain": "web.test"})


def test_names_are_asked_at_the_targets_resolver_by_tcp(tmp_path: Path, ssh_server: SshServer) -> None:
    async def work(port: int) -> Any:
        async with Executors(Surroundings(tmp_path)) as executors:
            async with executors.open(permit(ssh_server.target()), "Network") as network:
                assert await network.nameservers()
                return await CATALOGUE["dns_lookup"].function(At(network, port), "www.test", "A")

    with resolver(tmp_path) as server:
        found = run(work(server.port))
    assert found.status == "ok" and found.aliases == ["edge.test", "web.test"] and found.method == "dns"
    assert server.asked == [("tcp", "www.test.")]


def test_a_refused_connection_stands_in_for_a_ping(tmp_path: Path, ssh_server: SshServer) -> None:
    async def work() -> Any:
        async with Executors(Surroundings(tmp_path)) as executors:
            async with executors.open(permit(ssh_server.target()), "Network") as network:
                return await by_tcp(network, "127.0.0.1", 2, "no ping")

    found = run(work())
    assert (found.method, found.reachable, found.received) == ("tcp", True, 2)


def test_a_target_that_forwards_nothing_says_so(tmp_path: Path, ssh_servers: SshServers) -> None:
    server = ssh_servers.start("AllowTcpForwarding no")
    for tool, arguments in (
        ("test_port_connectivity", {"host": "127.0.0.1", "port": 80}),
        ("check_ssl_certificate", {"host": "127.0.0.1"}),
        ("http_request_test", {"url": "http://127.0.0.1/"}),
    ):
        error = result(tmp_path, server, tool, **arguments)["error"]
        assert error["code"] == "unsupported" and "AllowTcpForwarding" in f"{error['message']} {error['hint']}", tool
    assert result(tmp_path, server, "ping_host", host="127.0.0.1", count=1)["data"]["reachable"] is True
