"""Names: what the DNS says about a domain, asked at the target's own resolvers."""

import ipaddress
import re
import time
from collections.abc import Sequence
from typing import Any, Literal

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
from pydantic import Field

from systemmanager.errors import (
    CommandMissing,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArguments,
    NameNotResolved,
    Unreachable,
    UnreadableOutput,
    Unsupported,
)
from systemmanager.operation import Risk, operation
from systemmanager.params import Hostname
from systemmanager.ports import ForeignText, Network, Result

TRY = 4.0
"""Seconds for one resolver; it has three at most."""

RecordType = Literal["A", "AAAA", "MX", "TXT", "CNAME", "NS", "SOA", "SRV", "PTR", "CAA"]


class DnsRecord(Result):
    value: ForeignText
    ttl: int | None = Field(default=None, description="Seconds.")


class DnsAnswer(Result):
    domain: str
    record_type: str
    status: str = Field(description="ok, no_data, nxdomain, servfail, refused ...")
    records: list[DnsRecord]
    aliases: list[ForeignText] | None = Field(default=None, description="CNAME chain.")
    nameserver: str | None = None
    ms: float | None = None
    method: Literal["dns", "dig", "getent"] = "dns"
    note: str | None = None


@operation(
    scope="network:diag",
    capability="network:read",
    risk=Risk.MODERATE,
    timeout=30,
    roles={"name": "domain"},
    open_world=True,
)
async def dns_lookup(network: Network, domain: Hostname, record_type: RecordType = "A") -> DnsAnswer:
    """DNS records of a domain, by the target's resolvers. PTR takes an address. An unknown name is an answer."""
    name = _question(domain, record_type)
    query = dns.message.make_query(name, record_type, use_edns=0, payload=1232)
    failures: list[str] = []
    answers: list[DnsAnswer] = []
    for server in await network.nameservers():
        started = time.perf_counter()
        try:
            reply = _reply(await network.ask(server, query.to_wire(), TRY), query)
        except Unsupported as error:
            return await _by_program(network, domain, record_type, error)
        except (Unreachable, DeadlineExceeded, ConnectionLost, UnreadableOutput) as error:
            failures.append(f"{server}: {error.message}")
            continue
        took = round((time.perf_counter() - started) * 1000, 1)
        answers.append(_answer(domain, record_type, name, reply, nameserver=server, ms=took))
        if answers[-1].status in ("ok", "no_data", "nxdomain"):
            break
    if not answers:
        raise NameNotResolved(
            "no resolver of the target answered", hint="Look at its /etc/resolv.conf.", details={"tried": failures}
        )
    return answers[-1] if not failures else answers[-1].model_copy(update={"note": "; ".join(failures)})


def _question(domain: str, record_type: str) -> dns.name.Name:
    """The name to ask for: of an address, its name below in-addr.arpa or ip6.arpa."""
    try:
        address = ipaddress.ip_address(domain)
    except ValueError:
        return dns.name.from_text(domain)
    if record_type != "PTR":
        raise InvalidArguments(f"{domain} is an address, which has no {record_type} record", hint="Ask for PTR.")
    return dns.reversename.from_address(str(address))


def _reply(wire: bytes, query: dns.message.Message) -> dns.message.Message:
    try:
        reply = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError) as error:
        raise UnreadableOutput("the resolver answered something that is not DNS") from error
    if not query.is_response(reply):
        raise UnreadableOutput("the resolver answered another question")
    return reply


def _answer(domain: str, record_type: str, name: dns.name.Name, reply: dns.message.Message, **about: Any) -> DnsAnswer:
    """Follow the CNAME chain from the question to the records that end it."""
    aliases: list[str] = []
    records: list[DnsRecord] = []
    wanted = dns.rdatatype.from_text(record_type)
    sets = {(one.name, one.rdtype): one for one in reply.answer}
    while found := sets.pop((name, wanted), None) or sets.pop((name, dns.rdatatype.CNAME), None):
        if found.rdtype == wanted:
            records = [DnsRecord(value=_text(one), ttl=found.ttl) for one in sorted(found)]
            break
        name = found[0].target
        aliases.append(name.to_text(omit_final_dot=True))
    code = dns.rcode.to_text(reply.rcode()).lower()
    status = code if code != "noerror" else "ok" if records else "no_data"
    return DnsAnswer(
        domain=domain, record_type=record_type, status=status, records=records, aliases=aliases or None, **about
    )


def _text(record: Any) -> str:
    """A record as people write it; the pieces of a TXT record are one text."""
    if record.rdtype == dns.rdatatype.TXT:
        return b"".join(record.strings).decode("utf-8", "replace")
    return str(record.to_text())


# --- without a way to the resolvers -----------------------------------------------------------------------------------


async def _by_program(network: Network, domain: str, record_type: str, why: Unsupported) -> DnsAnswer:
    """Ask `dig` on the target, else `getent`, where the gateway itself can't get through to the resolvers."""
    try:
        return await _by_dig(network, domain, record_type, why.message)
    except CommandMissing as error:
        if record_type not in ("A", "AAAA", "PTR"):
            raise Unsupported(f"{why.message}; {error.message}", hint="Install dig there.") from error
    argv = ("hosts",) if record_type == "PTR" else ("ahostsv4",) if record_type == "A" else ("ahostsv6",)
    output = await network.run("getent", *argv, domain, check=False)  # no `--`: musl's would look it up
    if output.status not in (0, 2):
        raise UnreadableOutput(f"getent ended with exit status {output.status}")
    values = parse_getent(output.stdout, record_type)
    return DnsAnswer(
        domain=domain,
        record_type=record_type,
        status="ok" if values else "no_data",
        records=[DnsRecord(value=value) for value in values],
        method="getent",
        note=f"{why.message}; by the target's name service, hosts file included",
    )


async def _by_dig(network: Network, domain: str, record_type: str, why: str) -> DnsAnswer:
    name = _question(domain, record_type)
    argv = ("dig", "+nocmd", "+noall", "+comments", "+answer", "+tries=1", f"+time={TRY:g}", "-t", record_type)
    output = await network.run(*argv, "-q", name.to_text(), check=False)
    if "->>HEADER<<-" not in output.stdout:
        raise NameNotResolved("no resolver of the target answered dig", hint="Look at its /etc/resolv.conf.")
    return parse_dig(domain, record_type, output.stdout).model_copy(update={"note": why})


def parse_dig(domain: str, record_type: str, text: str) -> DnsAnswer:
    """Output of `dig +noall +comments +answer`."""
    status = re.search(r"status: ([A-Z]+)", text)
    if status is None:
        raise UnreadableOutput("dig printed no status")
    lines = (line.split(None, 4) for line in text.splitlines() if line and not line.startswith(";"))
    rows = [fields for fields in lines if len(fields) == 5 and fields[1].isdigit()]
    records = [DnsRecord(value=_unquoted(row[4]), ttl=int(row[1])) for row in rows if row[3] == record_type]
    aliases = [row[4].rstrip(".") for row in rows if row[3] == "CNAME" != record_type]
    code = status[1].lower()
    return DnsAnswer(
        domain=domain,
        record_type=record_type,
        status=code if code != "noerror" else "ok" if records else "no_data",
        records=records,
        aliases=aliases or None,
        method="dig",
    )


def _unquoted(value: str) -> str:
    return value if not value.startswith('"') else "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', value))


def parse_getent(text: str, record_type: str) -> Sequence[str]:
    """Addresses, or for PTR names, of `getent`; each once."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys(row[1] if record_type == "PTR" else row[0] for row in rows if len(row) > 1))
