"""What an address is, in whatever spelling, and whether a target's list of hosts opens it. Pure: nothing is resolved.

The policy judges with it what a call names, the executors judge with it what a name resolves to: one judgement, so that
the two can't differ. Kinds are those of the IANA special-purpose registries (RFC 6890) and what clouds document of
their metadata services.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Kind(IntEnum):
    """Kinds of addresses, the more dangerous the higher."""

    PUBLIC = 0
    PRIVATE = 1
    RESERVED = 2
    LOOPBACK = 3
    LINK_LOCAL = 4
    METADATA = 5

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Kind.PUBLIC: "a public address",
    Kind.PRIVATE: "a private address",
    Kind.RESERVED: "a reserved address",
    Kind.LOOPBACK: "a machine's own address",
    Kind.LINK_LOCAL: "a link-local address",
    Kind.METADATA: "a cloud's metadata service",
}

_NETWORKS: dict[Kind, tuple[str, ...]] = {
    Kind.PUBLIC: ("0.0.0.0/0", "2000::/3", "64:ff9b::/96"),
    Kind.PRIVATE: (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # RFC 1918
        "100.64.0.0/10",  # RFC 6598: carriers and tailnets
        "fc00::/7", "fec0::/10",
    ),
    # Nobody's, everybody's, documentation, benchmarks, and ways to wrap an IPv4 address.
    Kind.RESERVED: (
        "0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "::/0", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
        "ff00::/8",
    ),
    Kind.LOOPBACK: ("127.0.0.0/8", "::1/128"),
    Kind.LINK_LOCAL: ("169.254.0.0/16", "fe80::/10"),
    Kind.METADATA: (
        "169.254.169.254/32",  # nearly all of them
        "169.254.170.2/32", "169.254.170.23/32", "fd00:ec2::/32",  # AWS: credentials of tasks and pods too
        "fd20:ce::254/128",  # Google
        "168.63.129.16/32",  # Azure
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32", "fd00:c1::a9fe:a9fe/128",  # Oracle
        "169.254.0.23/32",  # Tencent
        "169.254.42.42/32", "fd00:42::42/128",  # Scaleway
        "fd00:a9fe:a9fe::1/128",  # Akamai
        "fe80::a9fe:a9fe/128",  # OpenStack
    ),
}  # fmt: skip

_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
    | {"metadata.azure.internal", "metadata.azure.com", "metadata.tencentyun.com", "metadata.platformequinix.com"}
    | {"metadata.packet.net"}
)


def _table(version: int) -> tuple[tuple[int, int, Kind, Network], ...]:
    """Every network of one version as (mask, value, kind, network), the smallest first."""
    rows = [(ipaddress.ip_network(text), kind) for kind, texts in _NETWORKS.items() for text in texts]
    own = sorted((row for row in rows if row[0].version == version), key=lambda row: -row[0].prefixlen)
    return tuple((int(net.netmask), int(net.network_address), kind, net) for net, kind in own)


_TABLES = {4: _table(4), 6: _table(6)}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOW_32 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
"""Where the last 32 bits are an IPv4 address: NAT64, compatible (RFC 4291), translated (RFC 2765)."""

# --- spellings --------------------------------------------------------------------------------------------------------

_DOTS = str.maketrans(dict.fromkeys("\u3002\uff0e\uff61", "."))
_IGNORED = re.compile("[\u00ad\u034f\u180b-\u180e\u200b-\u200d\u2060\ufe00-\ufe0f\ufeff]")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{0,16}|[0-9]{1,20}", re.ASCII)


def plain(host: str) -> str:
    """A host as IDNA's mapping (UTS 46) reads it: full-width and other digits are digits, ideographic dots are dots."""
    if host.isascii():
        return host.lower().rstrip(".")
    mapped = unicodedata.normalize("NFKC", _IGNORED.sub("", host).translate(_DOTS)).translate(_DOTS).casefold()
    return "".join(str(unicodedata.decimal(char, char)) for char in mapped).rstrip(".")


def parse(host: str) -> Address | None:
    """The address that a host is, None for a name. Resolvers read 2130706433, 0x7f.1, 0177.1 and 127.1 as 127.0.0.1."""
    text = plain(host.strip("[]").partition("%")[0])
    try:
        return unmapped(ipaddress.ip_address(text))
    except ValueError:
        return _numeric(text)


def unmapped(address: Address) -> Address:
    """`::ffff:10.0.0.1` is 10.0.0.1: the kernel sends IPv4 for it. A zone is left out."""
    if address.version == 4:
        return address
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


def _numeric(host: str) -> Address | None:
    parts = host.split(".")
    if len(parts) > 4 or not all(map(_NUMBER.fullmatch, parts)):
        return None
    *first, last = map(_part, parts)
    if any(number > 255 for number in first) or last >= 256 ** (5 - len(parts)):
        return None
    return ipaddress.IPv4Address(sum(number << (24 - 8 * index) for index, number in enumerate(first)) + last)


def _part(part: str) -> int:
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8) if part.startswith("0") and re.fullmatch("[0-7]+", part) else int(part)


# --- kinds ------------------------------------------------------------------------------------------------------------


def _row(address: Address) -> tuple[Kind, Network]:
    """The smallest network of the table that holds an address."""
    value = int(address)
    return next((kind, network) for mask, start, kind, network in _TABLES[address.version] if value & mask == start)


def _embedded(address: Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that gateways would make of an IPv6 address."""
    if address.version == 4:
        return []
    value, found = int(address), [*(address.teredo or ())]
    if address.sixtofour:
        found.append(address.sixtofour)
    isatap = (value >> 32) & 0xFDFFFFFF == 0x5EFE  # RFC 5214
    if isatap or any(address in network for network in _LOW_32):
        found.append(ipaddress.IPv4Address(value & 0xFFFFFFFF))
    return found


def kind_of(address: Address) -> Kind:
    """What an address is, and at least what the addresses inside it are."""
    return max(_row(one)[0] for one in (address, *_embedded(address)))


def _home(address: Address) -> Network:
    """The block that an entry must lie in to mean a dangerous address: `0.0.0.0/0` is not meant to."""
    kind, network = _row(address)
    return network if kind == kind_of(address) else ipaddress.ip_network(address)


def is_metadata_name(host: str) -> bool:
    return plain(host) in _METADATA_NAMES


# --- lists of hosts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `constraints.hosts`: a block of addresses, a glob for addresses, or a name or glob for names."""

    network: Network | None = None
    digits: str | None = None
    name: str | None = None

    @property
    def anything(self) -> bool:
        return self.name == "*"

    def opens(self, address: Address, name: str | None, kind: Kind, home: Network) -> bool:
        """Whether this entry was written for the address, or for the name that led to it.

        A public or private one is opened by any entry that matches; loopback by its exact name or a block of its own;
        what is more dangerous by a block of its own alone.
        """
        if self.network is not None:
            same = self.network.version == address.version and address in self.network
            return same and (kind <= Kind.PRIVATE or _within(self.network, home))
        if self.digits is not None:
            return kind <= Kind.PRIVATE and fnmatchcase(str(address), self.digits)
        if name is None or not self.matches(name):
            return False
        return kind <= Kind.PRIVATE or (kind is Kind.LOOPBACK and self.name == name)

    def matches(self, name: str) -> bool:
        return self.name is not None and not self.anything and fnmatchcase(name, self.name)


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer


@lru_cache(maxsize=1024)
def entries(patterns: tuple[str, ...]) -> tuple[Entry, ...]:
    return tuple(_entry(pattern.rstrip(".").lower()) for pattern in patterns)


def _entry(pattern: str) -> Entry:
    if "/" not in pattern:
        only = parse(pattern)
        if only is not None:
            return Entry(network=ipaddress.ip_network(only))
        # `10.0.*` is for addresses and names no host, so that `10.evil.example` is not among them.
        numeric = pattern != "*" and re.fullmatch(r"[0-9.*?]+", pattern) is not None
        return Entry(digits=pattern) if numeric else Entry(name=pattern)
    network = ipaddress.ip_network(pattern, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        network = ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return Entry(network=network)


def refused(
    address: Address,
    name: str | None,
    hosts: tuple[str, ...] | None,
    neighbours: frozenset[str] = frozenset(),
    *,
    own: bool = False,
) -> Kind | None:
    """What an address is that may not be reached; None for one that may.

    `name` is what led to it, None where it was asked for itself. Without a list (`hosts` is None) and with `"*"` in it,
    public addresses are open, and private ones of `neighbours`, the names and addresses of targets that the caller may
    use. `own` says that it is an address of the machine that connects.
    """
    address = unmapped(address)
    name = None if name is None else plain(name)
    kind, home = kind_of(address), _home(address)
    if own and kind < Kind.LOOPBACK:
        kind, home = Kind.LOOPBACK, ipaddress.ip_network(address)
    listed = entries(hosts) if hosts is not None else (Entry(name="*"),)
    if any(entry.opens(address, name, kind, home) for entry in listed):
        return None
    if any(entry.anything for entry in listed):
        known = str(address) in neighbours or name in neighbours
        if kind is Kind.PUBLIC or (kind is Kind.PRIVATE and known):
            return None
    return kind


def may_ask(name: str, hosts: tuple[str, ...] | None) -> bool:
    """Whether a name may be resolved at all: it is listed, or addresses are, and then they decide."""
    if is_metadata_name(name):
        return any(entry.name == plain(name) for entry in entries(hosts or ()))
    if hosts is None:
        return True
    return any(entry.name is None or entry.anything or entry.matches(plain(name)) for entry in entries(hosts))


def is_listed(host: str, hosts: Iterable[str]) -> bool:
    """Whether an entry matches a host as it is written: for what is asked about, but never connected to."""
    address, name = parse(host), plain(host)
    return any(
        entry.anything
        or (entry.matches(name) if address is None else entry.opens(address, None, Kind.PUBLIC, _home(address)))
        for entry in entries(tuple(hosts))
    )


def why_refused(host: str, address: Address, kind: Kind, hosts: tuple[str, ...] | None, target: str) -> tuple[str, str]:
    """The reason for a person, and what to put into the list."""
    literal = parse(host) is not None
    what = f"{address} is" if plain(host) == str(address) else f"{host[:253]} is {address},"
    fix = f"{address if literal or kind > Kind.PRIVATE else host} in constraints.hosts of {target!r}{beside(hosts)}"
    return f"{what} {kind.text}, which constraints.hosts of {target!r} does not open", fix


def beside(hosts: tuple[str, ...] | None) -> str:
    """What else a list needs that is to replace the default."""
    return ' (and "*" for public addresses)' if hosts is None else ""


def port_matches(port: int, patterns: Iterable[int | str]) -> bool:
    for pattern in patterns:
        first, _, last = str(pattern).partition("-")
        if int(first) <= port <= int(last or first):
            return True
    return False
