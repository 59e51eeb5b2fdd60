"""DNS questions to a real resolver on loopback, over UDP and TCP, and what is made of bad ones."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvloop

from systemmanager.errors import InvalidArguments, NameNotResolved, Unsupported
from systemmanager.executors.local_network import LocalNetwork
from systemmanager.operation import CATALOGUE
from systemmanager.request import Permit
from tests.real.sites import resolver
from tests.support import FakeShell, permitted, run, target

LOOKUP: Any = CATALOGUE["dns_lookup"]


def permit() -> Permit:
    return permitted("dns_lookup", target(), {"domain": "web.test", "record_type": "A"})


def look_up(tmp_path: Path, domain: str, record_type: str = "A", *, mood: str = "") -> tuple[Any, list[str]]:
    """An answer, and the transports that it took."""
    with resolver(tmp_path, mood=mood) as server:
        network = LocalNetwork(permit(), server.resolv_conf, server.port)
        found = run(LOOKUP.function(network, domain, record_type))
    return found, [transport for transport, _ in server.asked]


@pytest.mark.parametrize(
    ("domain", "record_type", "values"),
    [
        ("web.test", "A", ["192.0.2.9", "192.0.2.10"]),
        ("web.test", "AAAA", ["2001:db8::10"]),
        ("test", "MX", ["10 mail.test.", "20 backup.test."]),
        ("test", "TXT", ["v=spf1 -all"]),
        ("www.test", "CNAME", ["edge.test."]),
        ("test", "NS", ["ns1.test."]),
        ("test", "SOA", ["ns1.test. root.test. 7 7200 3600 1209600 300"]),
        ("_ldap._tcp.test", "SRV", ["0 5 389 dc1.test."]),
        ("192.0.2.10", "PTR", ["web.test."]),
        ("10.2.0.192.in-addr.arpa", "PTR", ["web.test."]),
        ("test", "CAA", ['0 issue "ca.test"']),
    ],
)
def test_every_record_type_is_answered(tmp_path: Path, domain: str, record_type: str, values: list[str]) -> None:
    found, transports = look_up(tmp_path, domain, record_type)
    assert found.status == "ok" and [record.value for record in found.records] == values
    assert {record.ttl for record in found.records} == {300}
    assert transports == ["udp"] and found.method == "dns" and found.nameserver == "127.0.0.1"


def test_a_chain_of_aliases_is_followed_and_shown(tmp_path: Path) -> None:
    found, _ = look_up(tmp_path, "www.test")
    assert found.aliases == ["edge.test", "web.test"]
    assert [record.value for record in found.records] == ["192.0.2.9", "192.0.2.10"]


def test_no_such_name_and_no_such_record_are_answers(tmp_path: Path) -> None:
    assert look_up(tmp_path, "nosuch.test")[0].status == "nxdomain"
    found, _ = look_up(tmp_path, "web.test", "MX")
    assert (found.status, found.records) == ("no_data", [])


def test_a_resolver_that_fails_is_an_answer(tmp_path: Path) -> None:
    assert look_up(tmp_path, "web.test", mood="servfail")[0].status == "servfail"


def test_what_does_not_fit_a_datagram_comes_by_tcp(tmp_path: Path) -> None:
    found, transports = look_up(tmp_path, "big.test", "TXT")
    assert len(found.records) == 20 and transports == ["udp", "tcp"]


def test_a_resolver_that_is_mute_by_udp_is_asked_by_tcp(tmp_path: Path) -> None:
    found, transports = look_up(tmp_path, "web.test", mood="mute")
    assert found.status == "ok" and transports == ["udp", "tcp"]


def test_an_answer_to_another_question_is_not_taken(tmp_path: Path) -> None:
    found, transports = look_up(tmp_path, "web.test", mood="other")
    assert found.status == "ok" and transports == ["udp", "tcp"]


def test_a_resolver_that_is_none_is_a_dns_failure(tmp_path: Path) -> None:
    with pytest.raises(NameNotResolved) as caught:
        look_up(tmp_path, "web.test", mood="garbage")
    assert "not DNS" in str(caught.value.details)


def test_a_dead_resolver_is_a_dns_failure_and_the_next_one_is_asked(tmp_path: Path) -> None:
    with resolver(tmp_path) as server:
        both = tmp_path / "both.conf"
        both.write_text("nameserver 127.0.0.77\nnameserver 127.0.0.1\n")
        found = run(LOOKUP.function(LocalNetwork(permit(), both, server.port), "web.test", "A"))
        assert found.status == "ok" and found.nameserver == "127.0.0.1" and "127.0.0.77" in found.note
        both.write_text("nameserver 127.0.0.77\n")
        with pytest.raises(NameNotResolved) as caught:
            run(LOOKUP.function(LocalNetwork(permit(), both, server.port), "web.test", "A"))
    assert "127.0.0.77" in str(caught.value.details) and caught.value.retryable


def test_an_address_has_only_a_pointer(tmp_path: Path) -> None:
    with pytest.raises(InvalidArguments, match="which has no A record"):
        look_up(tmp_path, "192.0.2.10", "A")


class Closed(FakeShell):
    """A vantage that lets no connection through, as with sshd's `AllowTcpForwarding no`."""

    async def nameservers(self) -> list[str]:
        return ["192.0.2.53"]

    async def ask(self, server: str, query: bytes, timeout: float) -> bytes:
        raise Unsupported("web-01 forwards no connections")


DIG = "dig +nocmd +noall +comments +answer +tries=1 +time=4 -t {0} -q {1}"
DIG_ANSWER = """;; Got answer:
;; ->>HEADER<<- opcode: QUERY, status: {status}, id: 51317
;; flags: qr rd ra; QUERY: 1, ANSWER: 3, AUTHORITY: 0, ADDITIONAL: 1

;; OPT PSEUDOSECTION:
; EDNS: version: 0, flags:; udp: 1232
{rows}
"""


def through_programs(replies: list[dict[str, Any]], domain: str, record_type: str) -> Any:
    return run(LOOKUP.function(Closed(replies), domain, record_type))


def test_without_forwarding_dig_is_asked_on_the_target() -> None:
    rows = ";; ANSWER SECTION:\nwww.test.\t\t300\tIN\tCNAME\tweb.test.\nweb.test.\t\t60\tIN\tA\t192.0.2.10"
    text = DIG_ANSWER.format(status="NOERROR", rows=rows)
    found = through_programs([{"argv": DIG.format("A", "www.test.").split(), "stdout": text}], "www.test", "A")
    assert (found.method, found.status, found.aliases) == ("dig", "ok", ["web.test"])
    assert [(record.value, record.ttl) for record in found.records] == [("192.0.2.10", 60)]
    assert "forwards no connections" in found.note


def test_dig_joins_the_pieces_of_a_text_and_tells_an_unknown_name() -> None:
    rows = ';; ANSWER SECTION:\ntest.\t\t300\tIN\tTXT\t"v=spf1 " "-all"'
    text = DIG_ANSWER.format(status="NOERROR", rows=rows)
    found = through_programs([{"argv": DIG.format("TXT", "test.").split(), "stdout": text}], "test", "TXT")
    assert [record.value for record in found.records] == ["v=spf1 -all"]
    text = DIG_ANSWER.format(status="NXDOMAIN", rows="")
    found = through_programs([{"argv": DIG.format("A", "no.test.").split(), "stdout": text}], "no.test", "A")
    assert (found.status, found.records) == ("nxdomain", [])


def test_without_dig_getent_is_asked_for_addresses() -> None:
    missing = {"argv": DIG.format("A", "web.test.").split(), "status": 127, "stderr": "dig: not found"}
    text = "192.0.2.10      STREAM web.test\n192.0.2.10      DGRAM  \n192.0.2.9       STREAM \n"
    found = through_programs([missing, {"argv": ["getent", "ahostsv4", "web.test"], "stdout": text}], "web.test", "A")
    assert found.method == "getent" and [record.value for record in found.records] == ["192.0.2.10", "192.0.2.9"]


def test_without_any_way_the_answer_says_what_to_install() -> None:
    missing = {"argv": DIG.format("MX", "test.").split(), "status": 127, "stderr": "dig: not found"}
    with pytest.raises(Unsupported) as caught:
        through_programs([missing], "test", "MX")
    assert caught.value.hint == "Install dig there."


def test_it_works_on_uvloop_as_the_server_runs_it(tmp_path: Path) -> None:
    with resolver(tmp_path) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found: Any = runner.run(
            LOOKUP.function(LocalNetwork(permit(), server.resolv_conf, server.port), "web.test", "A")
        )
        assert found.status == "ok"
    assert server.asked == [("udp", "web.test.")]
