"""What differs between targets: each one against what most of them have."""

import re
from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_address
from typing import ClassVar, Literal

from pydantic import Field

from systemmanager.across import Together
from systemmanager.operation import Risk, operation
from systemmanager.operations.containers import container_name
from systemmanager.operations.package_tools import package_tool
from systemmanager.operations.services import systemctl
from systemmanager.ports import Docker, Facts, Result, Shell

What = Literal["packages", "services", "kernel", "containers", "ports", "users"]

MOST_SHOWN = 50
"""Differences that are shown of one target."""

_WORD = re.compile(r"[^\w .:/+()~@,=*%\[\]-]", re.ASCII)
_LOGIN = re.compile(r"user(-runtime-dir)?@\d+\.service")
Items = dict[str, str]


class Item(Result):
    name: str  # no key of an object: what a target calls `passwd` would be masked as one
    here: str | None = None
    most: str | None = None


class Majority(Result):
    """Over all targets that answered."""

    compared: int
    items: int = Field(description="So many are on most of them.")
    same: list[str] = Field(description="Targets that are as the majority.")
    different: list[str]


class Compared(Together):
    """One target. `items` is what it has; of several targets only the differences from the majority are told."""

    total: int = Field(description="So many there are here.")
    items: list[Item] | None = Field(default=None, description="Of a single target: all of them.")
    same: bool | None = Field(default=None, description="As the majority.")
    differences: list[Item] | None = Field(default=None, description="Without `here`: missing. Without `most`: extra.")
    not_shown: int | None = Field(default=None, description="So many more differences there are.")

    Across: ClassVar = Majority

    @classmethod
    def across(cls, found: Mapping[str, "Compared"]) -> tuple[dict[str, "Compared"], Majority]:
        items = {id: {item.name: item.here or "" for item in one.items or ()} for id, one in found.items()}
        most = majority(items)
        told = {id: differences(one, most) for id, one in items.items()}
        same = [id for id, one in told.items() if one.same]
        different = [id for id in told if id not in same]
        return told, Majority(compared=len(found), items=len(most), same=same, different=different)


def majority(found: Mapping[str, Items]) -> Items:
    """What more than half of the targets have, with the value that most of those have; a tie goes to the value that
    sorts last, which for versions is mostly the newer one."""
    values: dict[str, Counter[str]] = {}
    for items in found.values():
        for name, value in items.items():
            values.setdefault(name, Counter())[value] += 1
    return {
        name: max(counts, key=lambda value: (counts[value], value))
        for name, counts in sorted(values.items())
        if 2 * counts.total() > len(found)
    }


def differences(items: Items, most: Items) -> Compared:
    """One target against the majority."""
    other = [
        Item(name=name, here=items.get(name), most=most.get(name))
        for name in sorted(items.keys() | most.keys())
        if items.get(name) != most.get(name)
    ]
    return Compared(
        total=len(items),
        same=not other,
        differences=other[:MOST_SHOWN] or None,
        not_shown=max(0, len(other) - MOST_SHOWN) or None,
    )


@operation(
    scope="system:read",
    capability="system:read",
    risk=Risk.LOW,
    timeout=60,
    by="what",
    selection="required",
)
async def compare_targets(shell: Shell, what: What) -> Compared:
    """What differs between targets, each against what most of them have: packages, services, kernel, containers,
    listening ports or users."""
    read = {"packages": _packages, "services": _services, "kernel": _kernel, "users": _users}[what]
    return _of(await read(shell))


@operation(
    form_of=compare_targets,
    begins="containers",
    scope="container:read",
    capability="container:read",
    risk=Risk.LOW,
    timeout=60,
    by="what",
    selection="required",
)
async def _of_containers(docker: Docker, what: What) -> Compared:
    """Containers with image and state."""
    return _of({container_name(row): f"{row['Image']}, {row['State']}" for row in await docker.containers()})


@operation(
    form_of=compare_targets,
    begins="ports",
    scope=("system:read", "network:read"),
    capability=("system:read", "network:read"),
    risk=Risk.LOW,
    timeout=60,
    by="what",
    selection="required",
)
async def _of_ports(facts: Facts, what: What) -> Compared:
    """What listens, and who can reach it. Each machine has other addresses of its own: they are no difference."""
    where: dict[str, set[str]] = {}
    for one in await facts.connections():
        address, _, port = one.local.rpartition(":")
        if one.state.upper() == "LISTEN" or (one.protocol.startswith("udp") and one.remote is None):
            where.setdefault(f"{one.protocol.rstrip('6')}/{port}", set()).add(_reach(address))
    return _of({port: ", ".join(sorted(addresses)) for port, addresses in where.items()})


def _reach(address: str) -> str:
    """From where a listening address can be reached, in a word."""
    plain = address.strip("[]").partition("%")[0]
    try:
        found = ip_address(plain)
    except ValueError:
        return "all" if plain in ("", "*") else plain
    found = getattr(found, "ipv4_mapped", None) or found
    return "all" if found.is_unspecified else "loopback" if found.is_loopback else "an address of its own"


def _of(items: Mapping[str, str]) -> Compared:
    """Names and values as words: nobody on a target can put more than that here."""
    shown = {_WORD.sub("?", name)[:200]: _WORD.sub("?", value)[:200] for name, value in items.items()}
    return Compared(total=len(shown), items=[Item(name=name, here=value) for name, value in shown.items()])


async def _packages(shell: Shell) -> Items:
    """Versions by name. The architecture is told only where it is not the machine's own: fleets are mixed."""
    found = await (await package_tool(shell)).installed()
    own = {name.rpartition(":")[2] for name in found if name.startswith(("dpkg:", "rpm:"))} | {"all", "noarch"}
    return {name.rpartition(":")[0] if name.rpartition(":")[2] in own else name: found[name] for name in found}


async def _services(shell: Shell) -> Items:
    """State now of every loaded service, and at boot of every installed one; those of logins come and go with us."""
    flags = ("--type=service", "--all", "--no-legend", "--no-pager", "--full", "--plain")
    units = (await systemctl(shell, "list-units", *flags)).stdout
    files = (await systemctl(shell, "list-unit-files", "--type=service", *flags[2:])).stdout
    boot = {line.split()[0]: line.split()[1] for line in files.splitlines() if len(line.split()) > 1}
    now = {line.split()[0]: line.split()[2] for line in units.splitlines() if len(line.split()) > 3}
    names = [name for name in boot | now if not _LOGIN.fullmatch(name)]
    return {name: ", ".join(filter(None, (now.get(name, "inactive"), boot.get(name)))) for name in names}


async def _kernel(shell: Shell) -> Items:
    said = (await shell.run("uname", "-srm")).stdout.split()
    release = (await shell.run("cat", "/etc/os-release", check=False)).stdout
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    system, version, machine = (*said, "", "", "")[:3]
    return {"kernel": f"{system} {version}", "machine": machine, "distribution": name[1] if name else "unknown"}


async def _users(shell: Shell) -> Items:
    """Accounts by name: number, group, shell. What is in comments and passwords stays there."""
    lines = (await shell.run("getent", "passwd")).stdout.splitlines()
    fields = [line.split(":") for line in lines if line.count(":") >= 6]
    return {one[0]: f"uid {one[2]}, gid {one[3]}, {one[6]}" for one in fields}
