"""apt and dnf: what each is asked, with the commands of `package_parsers`."""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from systemmanager.errors import CommandMissing, NotFound, PrivilegeRequired, Unsupported, did_you_mean
from systemmanager.operations import package_parsers as parse
from systemmanager.operations.package_parsers import Plan
from systemmanager.ports import Output, Shell

_SIMULATE = ("-s", "-q", "-o", "Debug::NoLocking=1", "-o", "APT::Get::Show-User-Simulation-Note=false")
_UNATTENDED = (
    "-y", "-q", "--no-remove",
    "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
    "-o", "DPkg::Lock::Timeout=60", "-o", "Dpkg::Use-Pty=0",
)  # fmt: skip
_QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
_UPGRADE = ("--with-new-pkgs", "upgrade")
_REBOOT = "/run/reboot-required"
_FETCHED = ("/var/lib/apt/periodic/update-success-stamp", "/var/lib/apt/lists/partial")
_DPKG_LIST = ("dpkg-query", "-W", "-f", r"${Package}\t${Architecture}\t${Version}\t${db:Status-Abbrev}\n")
_RPM_LIST = ("rpm", "-qa", "--qf", r"%{NAME}\t%{ARCH}\t%{EVR}\n")
_OLD_CODE = (
    'if [ "$(id -u)" != 0 ]; then exit 3; fi; '
    "for p in $(grep -lsE '^[^ ]+ ..x. .* /(usr|lib|lib64|bin|sbin|opt)/.* \\(deleted\\)$' /proc/[0-9]*/maps); do "
    'cat "${p%maps}cgroup" 2>/dev/null; done; exit 0'
)
"""Control groups of the processes that run code which was replaced on the disk; only root sees them all."""
_DNF = ("--setopt=exit_on_lock=True",)
_LOCKED = 200
"""dnf's exit status when another one holds a lock (dnf(8)); by itself it would wait without an end."""
_LOCK_ATTEMPTS = "abcdefg"
_LOCK_PAUSE = "10"
"""Seconds between two attempts to get dnf's lock: about what apt waits in all (DPkg::Lock::Timeout)."""
_OTHERS = {
    "nixos": "NixOS is updated as a whole: change its flake or channel, then `nixos-rebuild switch`.",
    "alpine": "Use `apk -U upgrade` there.",
    "arch": "Use `pacman -Syu` there.",
    "suse": "Use `zypper update` there.",
    "opensuse": "Use `zypper update` there.",
}


@dataclass(frozen=True, slots=True)
class Traces:
    """What earlier work left behind; `lists_from` in ISO 8601."""

    reboot: bool | None = None
    lists_from: str | None = None


class PackageTool(Protocol):
    """One kind of package tool on one target. `upgrade` and `install` change it; their exit status is the caller's."""

    @property
    def name(self) -> str: ...
    @property
    def shell(self) -> Shell: ...
    async def updates(self) -> Plan: ...
    async def traces(self) -> Traces: ...
    async def installed(self) -> dict[str, str]: ...
    async def plan(self, package: str | None) -> Plan:
        """What installing `package`, or upgrading everything, would do."""
        ...

    async def refresh(self) -> str | None:
        """Ask the package sources what they have; answers what went wrong, if anything did."""
        ...

    async def apply(self, package: str | None) -> Output: ...
    async def restarts(self) -> list[str] | None:
        """Services that still run what was replaced; None where that can't be known."""
        ...


async def _running_old_code(shell: Shell) -> list[str] | None:
    try:
        output = await shell.run("sh", "-c", _OLD_CODE, privileged=True, check=False, latest=True)
    except PrivilegeRequired:
        return None
    return parse.units_of(output.stdout) if output.status == 0 else None


async def package_tool(shell: Shell) -> PackageTool:
    """The tool that the target's distribution uses. Raises `Unsupported`, saying how it is updated instead."""
    release = await shell.run("cat", "/etc/os-release", check=False)
    system, ids = parse.os_release(release.stdout)
    if ids & {"debian", "ubuntu"}:
        return Apt(shell)
    if ids & {"fedora", "rhel", "centos"}:
        return Dnf(shell)
    hint = next((text for id, text in _OTHERS.items() if any(one.startswith(id) for one in ids)), None)
    raise Unsupported(f"packages of {system} are not managed from here, only apt's and dnf's", hint=hint)


@dataclass(frozen=True, slots=True)
class Apt:
    shell: Shell
    name: str = "apt"

    async def updates(self) -> Plan:
        return await self._simulated(*_UPGRADE)

    async def plan(self, package: str | None) -> Plan:
        if package is None:
            return await self._simulated(*_UPGRADE)
        await self._check(package)
        return await self._simulated("install", "--", package)

    async def _simulated(self, *arguments: str) -> Plan:
        output = await self.shell.run("apt-get", *_SIMULATE, *arguments, check=False)
        if output.status != 0:
            raise parse.failure("apt-get", f"simulate {' '.join(arguments)}", output)
        return parse.apt_plan(output.stdout)

    async def _check(self, package: str) -> None:
        """apt reads a name that it does not know as a regular expression: only what exists exactly is passed on."""
        name = package.partition(":")[0]
        exact = await self.shell.run("apt-cache", "pkgnames", "--", name, partial=True)
        if name in exact.stdout.split():
            return
        near = await self.shell.run("apt-cache", "pkgnames", "--", name[:3], partial=True)
        hint = did_you_mean(name, near.stdout.split()) if near.stdout else "The target's package lists may be empty."
        raise NotFound(f"apt knows no package {name!r}", hint=hint or None)

    async def traces(self) -> Traces:
        output = await self.shell.run("stat", "-c", "%Y %n", _REBOOT, *_FETCHED, check=False)
        times = {path: int(at) for at, _, path in (line.partition(" ") for line in output.stdout.splitlines())}
        fetched = max((times[path] for path in _FETCHED if path in times), default=None)
        return Traces(_REBOOT in times, None if fetched is None else _iso(fetched))

    async def installed(self) -> dict[str, str]:
        return parse.installed((await self.shell.run(*_DPKG_LIST)).stdout)

    async def refresh(self) -> str | None:
        output = await self.shell.run("apt-get", "-q", "update", privileged=True, check=False, latest=True)
        if output.status == 0:
            return None
        wrong = re.findall(r"^E: .*", output.stderr, re.MULTILINE)
        return f"The package lists could not be refreshed: {' '.join(wrong)[-400:] or 'apt-get update failed'}"

    async def apply(self, package: str | None) -> Output:
        if package is not None:
            await self._check(package)
        arguments = _UPGRADE if package is None else ("install", "--", package)
        return await self.shell.detached(
            "apply", "apt-get", *_UNATTENDED, *arguments, privileged=True, check=False, env=_QUIET
        )

    async def restarts(self) -> list[str] | None:
        with suppress(CommandMissing, PrivilegeRequired):
            output = await self.shell.run("needrestart", "-b", "-r", "l", privileged=True, check=False)
            if (found := parse.needrestart_units(output.stdout)) is not None:
                return found
        return await _running_old_code(self.shell)


@dataclass(frozen=True, slots=True)
class Dnf:
    """dnf 4 and 5. Their own parsers take no `--`; a package name never begins with `-`."""

    shell: Shell
    name: str = "dnf"

    async def updates(self) -> Plan:
        listed, advised, now = await asyncio.gather(
            self.shell.run("dnf", "-q", "check-update", check=False),
            self.shell.run("dnf", "-q", "updateinfo", "list", "--security", check=False),
            self.installed(),
        )
        if listed.status not in (0, 100):
            raise parse.failure("dnf", "look for updates", listed)
        security = parse.dnf_advised(advised.stdout)
        changes = [
            parse.PackageChange(
                name=name, old=now.get(f"{name}:{arch}"), new=new, security=f"{name}.{arch}" in security or None
            )
            for name, arch, new in parse.dnf_updates(listed.stdout)
        ]
        return Plan(changes, [])

    async def plan(self, package: str | None) -> Plan:
        what = ("upgrade",) if package is None else ("install", package)
        output, now = await asyncio.gather(
            self.shell.run("dnf", *_DNF, "--assumeno", *what, privileged=True, check=False), self.installed()
        )
        said = output.stdout + output.stderr
        if output.status not in (0, 1) or "Error" in said or "No match for argument" in said:
            raise parse.failure("dnf", f"simulate {' '.join(what)}", output)
        return parse.dnf_plan(said, now)

    async def traces(self) -> Traces:
        try:
            output = await self.shell.run("dnf", "-q", "needs-restarting", "-r", check=False)
        except CommandMissing:
            return Traces()
        return Traces(parse.needs_reboot(output.stdout))

    async def installed(self) -> dict[str, str]:
        return parse.installed((await self.shell.run(*_RPM_LIST)).stdout)

    async def refresh(self) -> str | None:
        return None  # `--refresh` does it within the transaction

    async def apply(self, package: str | None) -> Output:
        what = ("upgrade",) if package is None else ("install", package)
        return await self._unlocked(*what)

    async def _unlocked(self, *what: str) -> Output:
        """Do it as soon as the lock is free, within about a minute. Each attempt is a step of its own: taken up again,
        those that found it locked have ended already."""
        for attempt in _LOCK_ATTEMPTS:
            if attempt != _LOCK_ATTEMPTS[0]:
                await self.shell.run("sleep", _LOCK_PAUSE, check=False)
            output = await self.shell.detached(
                f"apply-{attempt}", "dnf", *_DNF, "-y", "--refresh", *what, privileged=True, check=False
            )
            if output.status != _LOCKED:
                break
        return output

    async def restarts(self) -> list[str] | None:
        with suppress(CommandMissing, PrivilegeRequired):
            output = await self.shell.run("dnf", *_DNF, "-q", "needs-restarting", "-s", privileged=True, check=False)
            if output.status == 0:
                return sorted({line for line in output.stdout.split() if line.endswith(".service")})
        return await _running_old_code(self.shell)


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
