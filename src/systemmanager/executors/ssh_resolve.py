"""Names as an SSH target resolves them, without letting its sshd do it: what is resolved here is judged, then dialled.

The target's own `getent` asks whatever it is set up to ask: hosts file, DNS, mDNS. Where it is missing, or no program
may run, its hosts file is read and its name servers are asked from here.
"""

from collections.abc import Awaitable, Callable

import anyio
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from systemmanager.errors import CommandFailed, CommandMissing, NameNotResolved, TargetError, Unsupported
from systemmanager.executors.ssh_connections import Kept
from systemmanager.executors.ssh_files import sftp_of
from systemmanager.executors.ssh_sftp import small_file
from systemmanager.executors.vantage import resolvers
from systemmanager.ports import Output

TRY = 4.0
"""Seconds for one name server."""
_NOT_FOUND = 2
"""getent's exit status for a name that is not there."""

Run = Callable[..., Awaitable[Output]]
Ask = Callable[[str, bytes, float], Awaitable[bytes]]


async def resolved(run: Run, kept: Kept, ask: Ask, host: str) -> list[str]:
    """Addresses in the order in which the target would try them. Raises `NameNotResolved`."""
    id = kept.target.id
    try:
        output = await run("getent", "ahosts", host, check=False)
    except (CommandMissing, CommandFailed, Unsupported):
        return await _by_files_and_dns(kept, ask, host)
    found = [words[0] for line in output.stdout.splitlines() if (words := line.split())]
    if output.status == 0 and found:
        return list(dict.fromkeys(found))
    if output.status == _NOT_FOUND:
        raise NameNotResolved(f"{host!r} can't be resolved by {id!r}")
    return await _by_files_and_dns(kept, ask, host)


async def _by_files_and_dns(kept: Kept, ask: Ask, host: str) -> list[str]:
    hosts, conf = await _files(kept)
    if listed := in_hosts_file(hosts, host):
        return listed
    failures: list[str] = []
    for name in candidates(conf, host):
        for server in resolvers(conf):
            try:
                found = await _asked(ask, server, name)
            except (TargetError, dns.exception.DNSException, ValueError) as error:
                failures.append(f"{server}: {error}")
                continue
            if found:
                return found
            break
    why = f": {failures[0]}" if failures else ""
    raise NameNotResolved(f"{host!r} can't be resolved by {kept.target.id!r}{why}"[:500])


async def _files(kept: Kept) -> tuple[str, str]:
    try:
        sftp = await sftp_of(kept)
        return await small_file(sftp, b"/etc/hosts"), await small_file(sftp, b"/etc/resolv.conf")
    except TargetError as error:
        raise Unsupported(
            f"{kept.target.id!r} has neither getent nor SFTP, so names can't be resolved there",
            hint="Give an address, install getent, or set 'Subsystem sftp internal-sftp' in its sshd_config.",
        ) from error


async def _asked(ask: Ask, server: str, name: dns.name.Name) -> list[str]:
    """Addresses of one name: IPv6 and IPv4 asked together, CNAMEs followed as far as the answer tells."""
    found: dict[str, list[str]] = {}

    async def one(kind: str) -> None:
        query = dns.message.make_query(name, kind)
        reply = dns.message.from_wire(await ask(server, query.to_wire(), TRY))
        if not query.is_response(reply) or reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise NameNotResolved(f"it answered {dns.rcode.to_text(reply.rcode())}")
        wanted = dns.rdatatype.from_text(kind)
        found[kind] = [record.to_text() for rrset in reply.answer if rrset.rdtype == wanted for record in rrset]

    try:
        async with anyio.create_task_group() as group:
            for kind in ("A", "AAAA"):
                group.start_soon(one, kind)
    except* (TargetError, dns.exception.DNSException, ValueError) as failures:
        raise failures.exceptions[0] from None
    return [*found["A"], *found["AAAA"]]


def in_hosts_file(text: str, host: str) -> list[str]:
    """Addresses that a hosts(5) file gives to a name, each once."""
    wanted = host.rstrip(".").lower()
    lines = (line.partition("#")[0].lower().split() for line in text.splitlines())
    return list(dict.fromkeys(words[0] for words in lines if wanted in words[1:]))


def candidates(resolv_conf: str, host: str) -> list[dns.name.Name]:
    """The full names to ask for, as resolv.conf(5) says with `ndots:1`."""
    name = dns.name.from_text(host, origin=None)
    if name.is_absolute():
        return [name]
    lines = [words for line in resolv_conf.splitlines() if len(words := line.split()) > 1]
    domains = next((words[1:7] for words in reversed(lines) if words[0] in ("search", "domain")), [])
    below = [name.concatenate(dns.name.from_text(domain)) for domain in domains]
    itself = name.concatenate(dns.name.root)
    return [itself, *below] if len(name) > 1 else [*below, itself]
