"""What an address is, in every spelling, and which entries of a list of hosts open it."""

import ipaddress

import pytest

from systemmanager.addresses import Kind, kind_of, may_ask, parse, port_matches, refused

P, R, L, LL, M = Kind.PRIVATE, Kind.RESERVED, Kind.LOOPBACK, Kind.LINK_LOCAL, Kind.METADATA

SPELLINGS: dict[str, str] = dict.fromkeys(
    (
        "127.0.0.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1",
        "127.0.0.1.",
        "0x7f.0x0.0x0.0x1", "::ffff:127.0.0.1", "[::ffff:7f00:1]", "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "127\uff0e0\uff610.1", "\u2460\u2461\u2466.0.0.1", "\u0661\u0662\u0667.0.0.1", "1\u00ad27.0.0.\u200b1",
        "\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1", "00000177.1",
        "::FFFF:127.0.0.1%eth0",
    ),
    "127.0.0.1",
) | {"fe80::1%eth0": "fe80::1", "[::1]": "::1", "0": "0.0.0.0", "2852039166": "169.254.169.254"}  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS, ids=ascii)
def test_an_address_is_known_in_every_spelling(host: str) -> None:
    assert str(parse(host)) == SPELLINGS[host]


@pytest.mark.parametrize(
    "name", ["a", "1.2.3.4.5", "256.1", "1.2.3.x", "0xg", "4294967296", "1..2", "", "10.evil.example"]
)
def test_a_name_is_no_address(name: str) -> None:
    assert parse(name) is None


KINDS: dict[Kind, tuple[str, ...]] = {
    Kind.PUBLIC: (
        "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.0", "169.253.0.1", "128.0.0.1",
        "126.255.255.255",
        "2606:4700::1111", "64:ff9b::8.8.8.8", "223.255.255.255",
    ),
    P: (
        "10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.100",
        "fd7a:115c:a1e0::1", "fc00::1", "fec0::1", "64:ff9b::10.0.0.1", "::ffff:192.168.0.1",
    ),
    R: (
        "0.0.0.0", "0.1.2.3", "192.0.2.1", "198.18.0.1", "224.0.0.251", "239.255.255.250", "240.0.0.1",
        "255.255.255.255",
        "::", "ff02::1", "2001:db8::1", "64:ff9b:1::1", "2002:808:808::1", "::8.8.8.8", "::ffff:0:8.8.8.8",
        "2001:0:4136:e378:8000:63bf:f7f7:f7f7", "4000::1", "5f00::1", "fe00::5efe:8.8.8.8",
    ),
    L: (
        "127.0.0.1", "127.255.255.254", "::1", "64:ff9b::127.0.0.1", "2002:7f00:1::", "::127.0.0.1",
        "::ffff:0:127.0.0.1", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ),
    LL: ("169.254.0.1", "fe80::1", "febf::1", "64:ff9b::169.254.7.7", "2002:a9fe:1::"),
    M: (
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192",
        "169.254.0.23", "169.254.42.42",
        "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1",
        "fe80::a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a9fe:a9fe", "::ffff:a9fe:a9fe",
        "::ffff:0:a9fe:a9fe", "2001:0:4136:e378:8000:63bf:5601:5601", "2001:0:a9fe:a9fe::1",
        "2606:4700::5efe:a9fe:a9fe",
        "2606:4700::200:5efe:a9fe:a9fe",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind"), [(text, kind) for kind, texts in KINDS.items() for text in texts], ids=lambda value: str(value)
)
def test_an_address_is_as_dangerous_as_what_is_inside_it(text: str, kind: Kind) -> None:
    address = parse(text)
    assert address is not None and kind_of(address) is kind


def test_every_address_has_a_kind() -> None:
    for value in (0, 1, 2**32 - 1, 2**64, 2**127, 2**128 - 1):
        assert kind_of(ipaddress.IPv6Address(value)) in Kind


# Address, the name that led to it, the list, whether it may be reached.
OPENED: dict[str, tuple[str, str | None, tuple[str, ...] | None, bool]] = {
    "public without a list": ("8.8.8.8", None, None, True),
    "public by *": ("8.8.8.8", None, ("*",), True),
    "public, other list": ("8.8.8.8", None, ("10.0.0.0/8",), False),
    "public, empty list": ("8.8.8.8", None, (), False),
    "public by its name": ("8.8.8.8", "dns.example", ("dns.example",), True),
    "private without a list": ("10.0.0.1", None, None, False),
    "private by name without a list": ("10.0.0.1", "db.lan", None, False),
    "private by *": ("10.0.0.1", None, ("*",), False),
    "private by its address": ("10.0.0.1", None, ("10.0.0.1",), True),
    "private by another spelling": ("10.0.0.1", None, ("0x0a000001",), True),
    "private by its block": ("10.0.0.1", None, ("10.0.0.0/8",), True),
    "private by a wide block": ("10.0.0.1", None, ("0.0.0.0/0",), True),
    "private by a mapped block": ("10.0.0.1", None, ("::ffff:10.0.0.0/104",), True),
    "private by a glob": ("10.0.0.1", None, ("10.0.*",), True),
    "private by its name": ("10.0.0.1", "db.lan", ("db.lan",), True),
    "private by its name in capitals": ("10.0.0.1", "DB.lan.", ("db.LAN",), True),
    "private by a glob of names": ("10.0.0.1", "db.lan", ("*.lan",), True),
    "private by a glob with brackets": ("10.0.0.1", "web-2", ("web-[12]",), True),
    "private by a glob of other names": ("10.0.0.1", "db.lan.evil.example", ("*.lan",), False),
    "private, digits that are a name": ("10.0.0.1", "10.evil.example", ("10.*",), True),
    "a name that looks like a glob of digits": ("8.8.8.8", "10.evil.example", ("10.*",), False),
    "IPv6 by its block": ("fd00::5", None, ("fd00::/8",), True),
    "IPv6 by an IPv4 block": ("64:ff9b::a00:1", None, ("10.0.0.0/8",), False),
    "IPv6 by its own NAT64 block": ("64:ff9b::a00:1", None, ("64:ff9b::/96",), True),
    "loopback without a list": ("127.0.0.1", None, None, False),
    "loopback by *": ("127.0.0.1", None, ("*",), False),
    "loopback by a wide block": ("127.0.0.1", None, ("0.0.0.0/0", "::/0"), False),
    "loopback by its block": ("127.0.0.1", None, ("127.0.0.0/8",), True),
    "loopback by a smaller block": ("127.0.0.1", None, ("127.0.0.0/30",), True),
    "loopback by its name": ("127.0.0.1", "localhost", ("localhost",), True),
    "loopback by a glob": ("127.0.0.1", "evil.lan", ("*.lan",), False),
    "loopback by digits": ("127.0.0.1", None, ("127.*",), False),
    "unspecified by its name": ("0.0.0.0", "zero.lan", ("zero.lan",), False),
    "unspecified by a wide block": ("0.0.0.0", None, ("0.0.0.0/0",), False),
    "link-local by its name": ("169.254.0.9", "printer", ("printer",), False),
    "link-local by its block": ("169.254.0.9", None, ("169.254.0.0/16",), True),
    "link-local by digits": ("169.254.0.9", None, ("169.254.*",), False),
    "metadata by its name": ("169.254.169.254", "metadata.goog", ("metadata.goog",), False),
    "metadata by the link-local block": ("169.254.169.254", None, ("169.254.0.0/16",), False),
    "metadata by its address": ("169.254.169.254", None, ("169.254.169.254",), True),
    "metadata by a tailnet's block": ("100.100.100.200", None, ("100.64.0.0/10",), False),
    "metadata in 6to4 by 6to4's block": ("2002:a9fe:a9fe::1", None, ("2002::/16",), False),
    "metadata in 6to4 by the address inside": ("2002:a9fe:a9fe::1", None, ("169.254.169.254",), False),
    "metadata in 6to4 by itself": ("2002:a9fe:a9fe::1", None, ("2002:a9fe:a9fe::1",), True),
    "metadata in NAT64 by NAT64's block": ("64:ff9b::a9fe:a9fe", None, ("64:ff9b::/96",), False),
    "multicast by a wide block": ("224.0.0.1", None, ("0.0.0.0/0",), False),
    "multicast by its block": ("224.0.0.1", None, ("224.0.0.0/4",), True),
}


@pytest.mark.parametrize(("text", "name", "hosts", "open_"), OPENED.values(), ids=OPENED)
def test_an_address_is_opened_by_an_entry_that_means_it(
    text: str, name: str | None, hosts: tuple[str, ...] | None, open_: bool
) -> None:
    address = ipaddress.ip_address(text)
    assert (refused(address, name, hosts) is None) is open_


NEIGHBOURS = frozenset({"10.0.0.5", "db.home.lab", "127.0.0.1", "169.254.169.254"})


@pytest.mark.parametrize(
    ("text", "name", "hosts", "open_"),
    [
        ("10.0.0.5", None, None, True),
        ("10.0.0.5", "any.name", ("*",), True),
        ("10.0.0.6", "db.home.lab", None, True),
        ("10.0.0.6", None, None, False),
        ("10.0.0.5", None, (), False),
        ("10.0.0.5", None, ("db.home.lab",), False),
        ("127.0.0.1", None, None, False),
        ("169.254.169.254", "db.home.lab", None, False),
    ],
)
def test_targets_that_the_caller_may_use_are_open_where_no_list_says_otherwise(
    text: str, name: str | None, hosts: tuple[str, ...] | None, open_: bool
) -> None:
    assert (refused(ipaddress.ip_address(text), name, hosts, NEIGHBOURS) is None) is open_


@pytest.mark.parametrize(
    ("hosts", "open_"), [(None, False), (("*",), False), (("8.8.0.0/16",), False), (("8.8.8.8",), True)], ids=str
)
def test_a_machines_own_address_is_loopback_whatever_it_is(hosts: tuple[str, ...] | None, open_: bool) -> None:
    assert (refused(ipaddress.ip_address("8.8.8.8"), None, hosts, own=True) is None) is open_


@pytest.mark.parametrize(
    ("name", "hosts", "may"),
    [
        ("db.lan", None, True),
        ("db.lan", (), False),
        ("db.lan", ("*",), True),
        ("db.lan", ("db.lan",), True),
        ("db.lan", ("other.lan",), False),
        ("db.lan", ("10.0.0.0/8",), True),
        ("db.lan", ("10.0.*",), True),
        ("metadata.google.internal", None, False),
        ("METADATA.google.internal.", ("*", "10.0.0.0/8", "*.internal"), False),
        ("metadata", ("metadata",), True),
    ],
)
def test_a_name_is_resolved_where_it_or_addresses_are_listed(
    name: str, hosts: tuple[str, ...] | None, may: bool
) -> None:
    assert may_ask(name, hosts) is may


@pytest.mark.parametrize(("port", "named"), [(79, False), (80, True), (8000, True), (8999, True), (9000, False)])
def test_port_patterns(port: int, named: bool) -> None:
    assert port_matches(port, [80, "8000-8999"]) is named
