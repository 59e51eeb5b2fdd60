"""What the security audit looks at: each check runs its commands, and a parser turns their text into findings."""

import re
from collections import defaultdict
from typing import Literal

from pydantic import Field

from systemmanager.errors import CommandFailed, CommandMissing, PrivilegeRequired, UnreadableOutput
from systemmanager.operations.package_tools import package_tool
from systemmanager.operations.services import systemctl
from systemmanager.ports import ForeignText, Result, Shell

Severity = Literal["critical", "high", "medium", "low", "info"]
SYSTEM_PATHS = ("/etc", "/usr", "/bin", "/sbin", "/lib", "/opt")
_MOST = 100
"""Findings of one check."""


class Finding(Result):
    check: str
    severity: Severity
    title: str
    evidence: ForeignText
    advice: str | None = Field(default=None)


# --- listening ports -------------------------------------------------------------------------------------------------

_EVERYWHERE = ("0.0.0.0", "*", "[::]", "::")  # noqa: S104  what is looked for
_EXPECTED = {22, 80, 443}
_PLAIN_REMOTE = {21: "FTP", 23: "telnet", 512: "rexec", 513: "rlogin", 514: "rsh"}
_DATA = {
    3306: "MySQL", 5432: "PostgreSQL", 6379: "Redis", 9200: "Elasticsearch", 11211: "memcached", 27017: "MongoDB",
    2379: "etcd", 5984: "CouchDB", 111: "rpcbind", 445: "SMB", 2049: "NFS",
}  # fmt: skip


async def listening_ports(shell: Shell) -> list[Finding]:
    return ports_open((await shell.run("ss", "-H", "-tulnp", privileged=True)).stdout)


def ports_open(text: str) -> list[Finding]:
    """`ss -H -tulnp`: what listens on every address, once per protocol and port."""
    seen: dict[tuple[str, int], set[str]] = defaultdict(set)
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 6 or not (match := re.fullmatch(r"(\S+):(\d+)", fields[4])):
            raise UnreadableOutput("ss printed a strange line", details={"line": line[:200]})
        if match[1].partition("%")[0] in _EVERYWHERE:
            seen[fields[0], int(match[2])] |= set(re.findall(r'\(\("([^"]+)"', line))
    return [_open_port(protocol, port, sorted(programs)) for (protocol, port), programs in sorted(seen.items())]


def _open_port(protocol: str, port: int, programs: list[str]) -> Finding:
    advice: str | None = "Bind it to one address, or close it in the firewall, if not everybody should reach it."
    severity: Severity = "low"
    name = ", ".join(programs)
    if protocol == "tcp" and port == 2375:
        severity, name, advice = "critical", name or "Docker's API", "Without TLS everybody who reaches it is root."
    elif protocol == "tcp" and port in _PLAIN_REMOTE:
        severity, name, advice = "high", name or _PLAIN_REMOTE[port], "It sends passwords in the clear: use SSH."
    elif port in _DATA:
        severity, name = "medium", name or _DATA[port]
    elif protocol == "udp" or port in _EXPECTED:
        severity, advice = "info", None
    return Finding(
        check="listening_ports",
        severity=severity,
        title=f"{protocol}/{port} listens on all addresses",
        evidence=name or "program unknown",
        advice=advice,
    )


# --- sshd ------------------------------------------------------------------------------------------------------------

_SSHD: tuple[tuple[str, str, Severity, str], ...] = (
    ("permitemptypasswords", r"yes", "critical", "Set PermitEmptyPasswords no."),
    ("permitrootlogin", r"yes", "high", "Set PermitRootLogin prohibit-password, or no."),
    ("protocol", r".*\b1\b.*", "high", "Remove Protocol: version 1 is broken."),
    ("passwordauthentication", r"yes", "medium", "Use keys, and set PasswordAuthentication no."),
    ("x11forwarding", r"yes", "low", "Set X11Forwarding no where nobody needs it."),
)


async def sshd_settings(shell: Shell) -> list[Finding]:
    """The effective settings where sshd tells them (it wants root), else what its file says."""
    try:
        effective = await shell.run("sshd", "-T", privileged=True)
    except (CommandFailed, CommandMissing, PrivilegeRequired):
        file = await shell.run("cat", "/etc/ssh/sshd_config", check=False)
        if file.status != 0:
            raise CommandMissing("there is no sshd, or its settings may not be read") from None
        return weak_settings(file.stdout, "/etc/ssh/sshd_config")
    return weak_settings(effective.stdout, "sshd -T")


def weak_settings(text: str, source: str) -> list[Finding]:
    """sshd's own rule: the first value of a keyword counts. What stands below `Match` is left out."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().replace("=", " ", 1).partition(" ")
        if keyword.lower() == "match":
            break
        if keyword and not keyword.startswith("#"):
            values.setdefault(keyword.lower(), value.strip().strip('"').lower())
    return [
        Finding(
            check="sshd_settings",
            severity=severity,
            title=f"sshd has {keyword} {values[keyword]}",
            evidence=source,
            advice=advice,
        )
        for keyword, pattern, severity, advice in _SSHD
        if re.fullmatch(pattern, values.get(keyword, ""))
    ]


# --- accounts --------------------------------------------------------------------------------------------------------


async def accounts(shell: Shell) -> list[Finding]:
    return other_roots((await shell.run("cat", "/etc/passwd")).stdout)


def other_roots(passwd: str) -> list[Finding]:
    rows = [line.split(":") for line in passwd.splitlines() if line.count(":") == 6]
    if not rows:
        raise UnreadableOutput("/etc/passwd holds no account")
    return [
        Finding(
            check="accounts",
            severity="critical",
            title=f"account {row[0]} is root too (uid 0)",
            evidence=":".join(row),
            advice="Remove it, or give it a user id of its own.",
        )
        for row in rows
        if row[2] == "0" and row[0] != "root"
    ]


async def empty_passwords(shell: Shell) -> list[Finding]:
    shadow = await shell.run("cat", "/etc/shadow", privileged=True, check=False)
    if shadow.status != 0:
        raise PrivilegeRequired("/etc/shadow may only be read by root")
    return without_password(shadow.stdout)


def without_password(shadow: str) -> list[Finding]:
    """Accounts whose password field is empty. The hashes go no further."""
    names = [line.split(":")[0] for line in shadow.splitlines() if line.split(":")[1:2] == [""]]
    return [
        Finding(
            check="empty_passwords",
            severity="critical",
            title=f"account {name} has an empty password",
            evidence="/etc/shadow",
            advice=f"Lock it: passwd -l {name}",
        )
        for name in names
    ]


# --- files -----------------------------------------------------------------------------------------------------------

_KNOWN_SETUID = frozenset(
    {
        "at", "bsd-write", "bwrap", "chage", "chfn", "chsh", "crontab", "dbus-daemon-launch-helper", "doas",
        "dotlockfile", "exim4", "expiry", "fusermount", "fusermount3", "gpasswd", "grub2-set-bootflag", "ksu",
        "locate", "lxc-user-nic", "mlocate", "mount", "mount.cifs", "mount.nfs", "mtr-packet", "newgidmap", "newgrp",
        "newuidmap", "ntfs-3g", "pam_timestamp_check", "passwd", "ping", "ping6", "pkexec", "plocate",
        "polkit-agent-helper-1", "postdrop", "postqueue", "pppd", "snap-confine", "ssh-agent", "ssh-keysign", "su",
        "sudo", "sudoedit", "suexec", "traceroute6.iputils", "umount", "unix_chkpwd", "unix_update", "userhelper",
        "usernetctl", "utempter", "wall", "write", "write.ul", "Xorg.wrap",
    }
)  # fmt: skip
_PROGRAM_FOLDERS = re.compile(r"/(usr/)?(s?bin|lib|libexec|lib64)/")


async def files(shell: Shell) -> list[Finding]:
    found = await shell.run(
        "find", *SYSTEM_PATHS, "-xdev", "!", "-type", "l", "(", "-perm", "-4000", "-o", "-perm", "-2000", "-o",
        "-perm", "-0002", ")", "-printf", r"%m %y %u:%g %p\n", check=False, partial=True,
    )  # fmt: skip
    if "-printf" in found.stderr:
        raise CommandMissing("find there knows no -printf (busybox)")
    return odd_files(found.stdout)


def odd_files(text: str) -> list[Finding]:
    """`find -printf '%m %y %u:%g %p'`: world-writable files, and setuid and setgid ones that no distribution ships."""
    findings = []
    for line in text.splitlines():
        match = re.fullmatch(r"([0-7]+) (\w) (\S+:\S+) (/.*)", line)
        if match:
            findings += _odd_file(int(match[1], 8), match[2], match[3], match[4])
    return findings[:_MOST]


def _odd_file(mode: int, kind: str, owner: str, path: str) -> list[Finding]:
    evidence = f"{path} {mode:04o} {owner}"
    if mode & 0o002 and kind in "fd" and not (kind == "d" and mode & 0o1000):
        what = "file" if kind == "f" else "folder"
        return [_file(evidence, "high", f"a system {what} that everybody may change", f"chmod o-w {path}")]
    name = path.rpartition("/")[2]
    if kind != "f" or not mode & 0o6000 or (name in _KNOWN_SETUID and _PROGRAM_FOLDERS.match(path)):
        return []
    bit = "setuid" if mode & 0o4000 else "setgid"
    title = f"{bit} program that is not well known: {name}"
    return [_file(evidence, "medium" if bit == "setuid" else "low", title, "Find out which package it is from.")]


def _file(evidence: str, severity: Severity, title: str, advice: str) -> Finding:
    return Finding(check="files", severity=severity, title=title, evidence=evidence, advice=advice)


# --- Docker, updates, units ------------------------------------------------------------------------------------------


async def docker_socket(shell: Shell) -> list[Finding]:
    socket = await shell.run("stat", "-L", "-c", "%a %U:%G", "/var/run/docker.sock", check=False)
    if socket.status != 0:
        return []
    group = await shell.run("getent", "group", "docker", check=False)
    return socket_rights(socket.stdout.strip(), group.stdout.strip())


def socket_rights(status: str, group: str) -> list[Finding]:
    """`stat -c '%a %U:%G'` of Docker's socket, and the line of its group."""
    findings: list[Finding] = []
    mode = status.partition(" ")[0]
    if mode.isdecimal() and int(mode, 8) & 0o006:
        findings.append(
            Finding(
                check="docker_socket",
                severity="critical",
                title="everybody may use Docker's socket, and so be root",
                evidence=f"/var/run/docker.sock {status}",
                advice="chmod 660 /var/run/docker.sock",
            )
        )
    members = [name for name in group.split(":")[-1].split(",") if name] if group.count(":") == 3 else []
    if members:
        findings.append(
            Finding(
                check="docker_socket",
                severity="medium",
                title="members of group docker are root in effect",
                evidence=", ".join(members),
                advice="Keep this group as small as that of the administrators.",
            )
        )
    return findings


async def updates(shell: Shell) -> list[Finding]:
    plan = await (await package_tool(shell)).updates()
    names = [change.name for change in plan.changes if change.security]
    if not names:
        return []
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return [
        Finding(
            check="updates",
            severity="high",
            title=f"{len(names)} security updates wait",
            evidence=", ".join(names[:10]) + more,
            advice="update_system_packages installs them.",
        )
    ]


async def failed_units(shell: Shell) -> list[Finding]:
    output = await systemctl(shell, "list-units", "--failed", "--no-legend", "--no-pager", "--full", "--plain")
    if output.status != 0:
        raise CommandFailed(f"systemctl ended with exit status {output.status}")
    return [
        Finding(
            check="failed_units",
            severity="low",
            title=f"unit {line.split()[0]} has failed",
            evidence=" ".join(line.split()[1:4]),
            advice="get_service_status shows why.",
        )
        for line in output.stdout.splitlines()[:_MOST]
        if line.split()
    ]
