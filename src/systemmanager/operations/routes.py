"""The route from a target to a host."""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import Field

from systemmanager.errors import CommandFailed, CommandMissing, UnreadableOutput
from systemmanager.operation import Risk, operation
from systemmanager.operations.diagnostics import by_tcp
from systemmanager.params import Hostname, NotBoolean
from systemmanager.ports import Network, Result


class Hop(Result):
    n: int
    address: str | None = None
    ms: float | None = None
    note: str | None = None


class Route(Result):
    host: str
    reached: bool
    method: Literal["traceroute", "tracepath", "tcp"]
    address: str | None = None
    hops: list[Hop] | None = Field(default=None, description="A hop without address did not answer.")
    note: str | None = None


@operation(
    scope="network:diag",
    capability="network:read",
    risk=Risk.MODERATE,
    timeout=120,
    roles={"host": "host"},
    open_world=True,
)
async def traceroute(
    network: Network, host: Hostname, max_hops: Annotated[int, Field(ge=1, le=64), NotBoolean] = 15
) -> Route:
    """The route from the target to a host, hop by hop; only whether TCP reaches it where no program is there."""
    why: list[str] = []
    address = (await network.addresses(host))[0]
    for argv, parse in (
        (("traceroute", "-n", "-m", str(max_hops), "-q", "1", "-w", "2", "--", address), parse_traceroute),
        (("tracepath", "-n", "-m", str(max_hops), "--", address), parse_tracepath),
    ):
        try:
            output = await network.run(*argv, check=False)
            route = parse(host, output.stdout)
            said = output.stderr.strip().splitlines()
            return route if route.hops or not said else route.model_copy(update={"note": said[-1][:200]})
        except (CommandMissing, CommandFailed, UnreadableOutput) as error:
            why.append(error.message)
    ping = await by_tcp(network, host, 1, "; ".join(why))
    return Route(host=host, reached=ping.reachable, method="tcp", note=ping.note)


_HOP = re.compile(r"^\s*(\d+)\s+(\*|[0-9a-fA-F:.]+)(?:\s+([\d.]+) ms)?(?:\s+(![A-Z0-9<>-]*))?")


def parse_traceroute(host: str, text: str) -> Route:
    """Output of `traceroute -n -q 1`, Linux' and busybox'."""
    head = re.search(r"traceroute to \S+ \(([0-9a-fA-F:.]+)\)", text)
    if head is None:
        raise UnreadableOutput("traceroute printed nothing that is known here")
    hops = []
    for line in text.splitlines():
        if found := _HOP.match(line):
            number, address, took, mark = found.groups()
            hops.append(
                Hop(
                    n=int(number),
                    address=None if address == "*" else address,
                    ms=float(took) if took else None,
                    note=_MARKS.get(mark, mark) if mark else None,
                )
            )
    reached = any(_same(hop.address, head[1]) and hop.note is None for hop in hops)
    return Route(host=host, reached=reached, method="traceroute", address=head[1], hops=hops)


_MARKS = {
    "!H": "host unreachable",
    "!N": "network unreachable",
    "!P": "protocol unreachable",
    "!X": "administratively prohibited",
}


def parse_tracepath(host: str, text: str) -> Route:
    """Output of `tracepath -n`; each hop once, by its last line."""
    hops: dict[int, Hop] = {}
    for line in text.splitlines():
        found = re.match(r"^\s*(\d+)\??:\s+(no reply|[0-9a-fA-F:.]+(?=\s))(?:\s+([\d.]+)\s*ms)?", line)
        if found and "[LOCALHOST]" not in line:
            number, address, took = found.groups()
            known = None if address == "no reply" else address
            hops[int(number)] = Hop(n=int(number), address=known, ms=float(took) if took else None)
    if not hops:
        raise UnreadableOutput("tracepath printed nothing that is known here")
    reached = re.search(r"^\s*\d+:\s+(\S+).*\breached\s*$", text, re.M)
    return Route(
        host=host,
        reached=reached is not None,
        method="tracepath",
        address=reached[1] if reached else None,
        hops=list(hops.values()),
    )


def _same(one: str | None, other: str) -> bool:
    return one is not None and ipaddress.ip_address(one) == ipaddress.ip_address(other)
