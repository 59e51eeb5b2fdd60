"""Which hosts and ports a diagnostic may reach, in whatever spelling they are asked for."""

from typing import Any

import pytest

from systemmanager.request import Answer
from tests.policy.test_rules import judged, request

METADATA = [
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376",
    "169.254.43518", "169.16689662", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::169.254.169.254",
    "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200",
    "192.0.0.192", "168.63.129.16", "metadata", "metadata.google.internal", "METADATA.google.internal.",
    "169.254.169.254.",
]  # fmt: skip


@pytest.mark.parametrize("host", METADATA)
def test_a_metadata_service_needs_an_entry_of_its_own(host: str) -> None:
    for hosts, answer in ((None, Answer.DENY), (["*"], Answer.DENY), ([], Answer.DENY), ([host], Answer.ALLOW)):
        assert judged("hosts", asked({"host": host}, hosts)).answer is answer


def asked(arguments: dict[str, Any], hosts: list[str] | None = None, ports: list[int | str] | None = None) -> Any:
    roles = {"url": "url"} if "url" in arguments else {"host": "host", "port": "port ports"}
    roles |= {"name": "name"} if "name" in arguments else {}
    return request(arguments=arguments, roles=roles, constraints={"hosts": hosts, "ports": ports})


RULED: dict[str, tuple[dict[str, Any], list[str] | None, list[int | str] | None, str]] = {
    "no host": ({}, [], [], "default"),
    "LAN": ({"host": "10.0.0.1"}, None, None, "host_not_allowed"),
    "loopback": ({"url": "http://127.1:8080/"}, None, None, "host_not_allowed"),
    "a name that addresses decide on": ({"host": "a"}, ["10.0.0.0/8"], None, "default"),
    "asked about": ({"name": "a"}, None, None, "default"),
    "asked about, listed": ({"name": "a.lan"}, ["*.lan"], None, "default"),
    "asked about, not listed": ({"name": "a"}, ["10.0.0.0/8"], None, "host_not_allowed"),
    "an address asked about": ({"name": "10.0.0.1"}, ["10.0.0.0/8"], None, "default"),
    "no list": ({"host": "a"}, None, None, "default"),
    "listed": ({"host": "a"}, ["a"], None, "default"),
    "port listed": ({"host": "a", "port": 443}, None, [443], "default"),
    "ports in a range": ({"host": "a", "ports": [8000, 8999]}, None, ["8000-8999"], "default"),
    "no port asked": ({"host": "a", "port": None, "ports": None}, None, [], "default"),
    "URL": ({"url": "https://a/x?y#z"}, ["a"], [443], "default"),
    "URL with port": ({"url": "http://[2001:db8::1]:8080/"}, ["2001:db8::/32"], [8080], "default"),
    "empty list": ({"host": "a"}, [], None, "host_not_allowed"),
    "empty ports": ({"host": "a", "port": 1}, None, [], "port_not_allowed"),
    "one port of many": ({"host": "a", "ports": [80, 22]}, None, [80], "port_not_allowed"),
    "both port parameters": ({"host": "a", "port": 80, "ports": [22]}, None, [80], "port_not_allowed"),
    "URL elsewhere": ({"url": "https://b/"}, ["a"], None, "host_not_allowed"),
    "URL's own port": ({"url": "http://a/"}, ["a"], [443], "port_not_allowed"),
    "URL to metadata": ({"url": "http://169.254.169.254/latest"}, None, None, "host_not_allowed"),
    "URL to metadata as a number": ({"url": "http://2852039166/"}, None, None, "host_not_allowed"),
    "userinfo": ({"url": "http://a@b/"}, ["a", "b"], None, "host_not_allowed"),
    "backslash": ({"url": "http://a\\@b/"}, ["a", "b"], None, "host_not_allowed"),
    "fragment before at": ({"url": "http://a#@b/"}, ["b"], None, "host_not_allowed"),
    "other scheme": ({"url": "file:///etc/passwd"}, ["*"], None, "host_not_allowed"),
    "no URL": ({"url": ""}, ["*"], None, "host_not_allowed"),
    "port of letters": ({"url": "http://a:b/"}, ["*"], None, "host_not_allowed"),
    "full-width digits": ({"url": "http://\uff11\uff10.0.0.1/"}, ["*"], None, "host_not_allowed"),
}


@pytest.mark.parametrize(("arguments", "hosts", "ports", "code"), RULED.values(), ids=RULED)
def test_hosts_and_ports(
    arguments: dict[str, Any], hosts: list[str] | None, ports: list[int | str] | None, code: str
) -> None:
    verdict = judged("hosts", asked(arguments, hosts, ports))
    assert (verdict.answer is Answer.ALLOW) is (code == "default")
    assert code == "default" or verdict.code == code


def test_the_fix_names_everything_that_is_missing() -> None:
    verdict = judged("hosts", asked({"host": "b", "ports": [22, 80, 23]}, ["a"], [80]))
    assert verdict.fix == "b in constraints.hosts of 'web-01' and 22, 23 in constraints.ports of 'web-01'"


def test_a_private_address_is_refused_with_what_to_write() -> None:
    verdict = judged("hosts", asked({"host": "0x0a000001"}))
    assert verdict.reason == (
        "0x0a000001 is 10.0.0.1, a private address, which constraints.hosts of 'web-01' does not open"
    )
    assert verdict.fix == "10.0.0.1 in constraints.hosts of 'web-01' (and \"*\" for public addresses)"


def test_an_allowed_name_is_said_to_be_judged_again() -> None:
    assert "when it is resolved" in judged("hosts", asked({"host": "db.lan"})).reason
    assert "when it is resolved" not in judged("hosts", asked({"host": "8.8.8.8"})).reason
