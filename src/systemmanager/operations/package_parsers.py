"""What apt, dnf, dpkg and rpm print, as data."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import Field

from systemmanager.errors import CommandFailed, Locked, NotFound, PrivilegeRequired, TargetError, UnreadableOutput
from systemmanager.ports import Output, Result


class PackageChange(Result):
    name: str
    old: str | None = Field(default=None, description="Installed version; none of a new package.")
    new: str | None = Field(default=None, description="None: removed.")
    security: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a package manager would do; `held_back` are updates that it leaves out."""

    changes: list[PackageChange]
    held_back: list[str]


def os_release(text: str) -> tuple[str, frozenset[str]]:
    """The distribution's name for people, and its id with those of the distributions it is like."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    plain = {name: value.strip().strip("\"'") for name, value in fields.items()}
    ids = frozenset([plain.get("ID", ""), *plain.get("ID_LIKE", "").split()]) - {""}
    return plain.get("PRETTY_NAME") or plain.get("NAME") or "an unknown system", ids


_INST = re.compile(r"Inst (?P<name>\S+)(?: \[(?P<old>[^\]]+)\])? \((?P<new>\S+) (?P<origin>[^)]*)\)")
_REMV = re.compile(r"Remv (?P<name>\S+) \[(?P<old>[^\]]+)\]")
_HELD = ("The following packages have been kept back:", "The following upgrades have been deferred due to phasing:")


def apt_plan(text: str) -> Plan:
    """`apt-get -s upgrade` or `install`."""
    if not re.search(r"^\d+ upgraded, \d+ newly installed", text, re.MULTILINE):
        raise UnreadableOutput("apt-get did not sum up its simulation", details={"output": text[-600:]})
    changes, held, in_held = [], [], False
    for line in text.splitlines():
        if in_held and line.startswith(" "):
            held += line.split()
        else:
            in_held = line.startswith(_HELD)
        if match := _INST.match(line):
            security = "security" in match["origin"].lower()
            changes.append(
                PackageChange(name=match["name"], old=match["old"], new=match["new"], security=security or None)
            )
        elif match := _REMV.match(line):
            changes.append(PackageChange(name=match["name"], old=match["old"]))
    return Plan(changes, held)


def installed(text: str) -> dict[str, str]:
    """Versions by `name:arch`, from dpkg-query or rpm asked for `name arch version` lines."""
    versions: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) < 3:
            raise UnreadableOutput("the list of installed packages holds a strange line", details={"line": line[:200]})
        name, arch, version, *state = fields
        if not state or state[0].startswith("i"):
            key = f"{name}:{arch}"
            versions[key] = f"{versions[key]}, {version}" if key in versions else version
    return versions


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[PackageChange]:
    """What differs between two lists of installed packages."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [PackageChange(name=name.rpartition(":")[0], old=before.get(name), new=after.get(name)) for name in names]


def dnf_updates(text: str) -> list[tuple[str, str, str]]:
    """`dnf check-update`: (name, arch, version) of each; what follows "Obsoleting" is no update."""
    found = []
    for line in text.splitlines():
        if line.startswith("Obsoleting"):
            break
        match = re.fullmatch(r"(\S+)\.(\w+)\s+(\d\S*)\s+\S+\s*", line)
        if match and not line.startswith(" "):
            found.append((match[1], match[2], match[3]))
    return found


def dnf_advised(text: str) -> frozenset[str]:
    """`dnf updateinfo list --security`, of dnf 4 and 5: `name.arch` of each package that an advisory names."""
    named = re.findall(
        r"(?<!\S)(\S+)-[^-\s]+-[^-\s]+\.(x86_64|aarch64|noarch|i[3-6]86|ppc64le|s390x|riscv64)(?!\S)", text
    )
    return frozenset(f"{name}.{arch}" for name, arch in named)


_SECTIONS = re.compile(r"(Installing|Upgrading|Downgrading|Reinstalling|Removing)\b[\w ]*:$")
_ROW = re.compile(r"(\S+) (\w+) (\S+) (\S+) ([\d.]+)(?: (?:[kMGT]|B|[KMGT]iB)(?!\S))?")


def dnf_plan(text: str, now: Mapping[str, str]) -> Plan:
    """The transaction table of dnf 4 and 5; dnf 4 breaks the lines of long names. `now` is what is installed."""
    if "Nothing to do" in text:
        return Plan([], [])
    sections: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines():
        if match := _SECTIONS.match(line.strip()):
            sections.append((match[1], []))
            inside = True
        elif line.startswith(("Transaction Summary", "Skipping ", "Warning")):
            inside = False
        elif inside and not line.strip().startswith("replacing "):
            sections[-1][1].extend(line.split())
    changes = [
        _dnf_change(section, match[1], match[2], match[3], now)
        for section, words in sections
        for match in _ROW.finditer(" ".join(words))
    ]
    if not changes:
        raise UnreadableOutput("dnf did not show what it would do", details={"output": text[-600:]})
    return Plan(changes, [])


def _dnf_change(section: str, name: str, arch: str, version: str, now: Mapping[str, str]) -> PackageChange:
    if section == "Removing":
        return PackageChange(name=name, old=version)
    return PackageChange(name=name, old=now.get(f"{name}:{arch}"), new=version)


_UNIT_OF = re.compile(r"^[0-9]+:(?:name=systemd)?:/system\.slice/(?:.*/)?([^/]+\.service)(?:/.*)?$", re.MULTILINE)


def units_of(cgroups: str) -> list[str]:
    """The system's services that the processes of these /proc/PID/cgroup texts belong to."""
    return sorted(set(_UNIT_OF.findall(cgroups)))


def needrestart_units(text: str) -> list[str] | None:
    """`needrestart -b`; None when that is not what it said."""
    if "NEEDRESTART-VER:" not in text:
        return None
    return sorted(set(re.findall(r"^NEEDRESTART-SVC: (\S+\.service)$", text, re.MULTILINE)))


def needs_reboot(text: str) -> bool | None:
    """`dnf needs-restarting -r`; None where the plugin is missing."""
    if "Reboot is required" in text:
        return True
    return False if "should not be necessary" in text else None


_LOCK = re.compile(
    r"Could not get lock|dpkg frontend lock|transaction lock|is another process using it|already locked by",
    re.IGNORECASE,
)
_HOLDERS = (r"held by process (?P<pid>\d+)(?: \((?P<name>[^)]+)\))?", r"PID (?P<pid>\d+) is: (?P<name>\S+)")
_UNKNOWN = re.compile(
    r"Unable to locate package|has no installation candidate|No match for argument|Unable to find a match"
    r"|Couldn't find any package",
)
_HINTS = (
    ("dpkg was interrupted", "Run `dpkg --configure -a` there first."),
    ("No space left on device", "The disk is full."),
    ("enough free space", "The disk is full."),
    ("remove is disabled", "It would remove packages: look at the plan (auto_approve=false), and do it by hand."),
    ("Failed to fetch", "A package source did not answer; try again, or look at its network."),
    ("Cannot download", "A package source did not answer; try again, or look at its network."),
)


def failure(program: str, what: str, output: Output) -> TargetError:
    """Why a package manager failed, with the end of what it said."""
    said = f"{output.stdout}\n{output.stderr}".strip()
    details = {"output": said[-1500:]}
    if re.search(r"Permission denied|are you root|superuser privileges", said):
        return PrivilegeRequired(
            f"{program} needs root to {what}", hint="Set sudo_policy of the target.", details=details
        )
    if _LOCK.search(said):
        holder = next(filter(None, (re.search(pattern, said) for pattern in _HOLDERS)), None)
        who = f"{holder['name'] or 'process'} ({holder['pid']})" if holder else "another package manager"
        return Locked(f"{who} holds the package lock", details=details)
    if _UNKNOWN.search(said):
        return NotFound(f"{program} knows no such package", details=details)
    hint = next((hint for mark, hint in _HINTS if mark in said), None)
    retryable = hint is not None and "try again" in hint
    message = f"{program} could not {what} (exit status {output.status})"
    return CommandFailed(message, hint=hint, retryable=retryable, details=details)


def security_first(changes: Iterable[PackageChange]) -> list[PackageChange]:
    return sorted(changes, key=lambda change: (not change.security, change.name))
