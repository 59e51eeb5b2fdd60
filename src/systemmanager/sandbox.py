"""The sandbox as it is: what a unit promises of this process, looked for in the process itself.

A unit's text proves nothing: a drop-in, a container or an old kernel takes parts of it away without a word.
"""

import mmap
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

Promise = Literal[
    "no_new_privileges",
    "no_capabilities",
    "system_calls",
    "non_root",
    "own_users",
    "read_only_system",
    "no_home",
    "own_tmp",
    "own_devices",
    "nothing_to_execute",
    "no_writable_code",
    "address_families",
    "kernel_tunables",
    "control_groups",
    "closed_umask",
]

DEVICES = frozenset(
    {
        "block", "char", "console", "core", "fd", "full", "hugepages", "initctl", "log", "mqueue", "null", "ptmx",
        "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    }
)  # fmt: skip
"""All that stands in a /dev of systemd's PrivateDevices=."""

FORBIDDEN_FAMILY = 38
"""AF_ALG: the kernel's cryptography, which the gateway has no use for and which any user may open otherwise."""


def lost(promised: Sequence[Promise], writable: Sequence[Path]) -> dict[str, str]:
    """What is promised and not there, with what was seen instead. `writable` are the folders that the gateway writes.

    What can't be looked at counts as lost.
    """
    found: dict[str, str] = {}
    for promise in promised:
        try:
            seen = _LOOKS[promise](writable)
        except (OSError, ValueError, KeyError, IndexError) as error:
            seen = f"can't be looked at: {error}"
        if seen is not None:
            found[promise] = seen
    return found


def status() -> dict[str, str]:
    """/proc/self/status by name (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mounts() -> Iterator[tuple[str, str]]:
    """Root within its file system and place of each mount (proc_pid_mountinfo(5))."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        yield fields[3], fields[4]


def _is(name: str, wanted: str) -> str | None:
    value = status()[name]
    return None if value == wanted else f"{name} is {value}"


def _no_capabilities(_: Sequence[Path]) -> str | None:
    held = {
        name: int(value, 16) for name, value in status().items() if name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")
    }
    wrong = [f"{name} is {value:x}" for name, value in held.items() if value]
    return ", ".join(wrong) or (None if len(held) == 4 else "the kernel does not tell")


def _own_users(_: Sequence[Path]) -> str | None:
    rows = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    mapped = sum(int(row[2]) for row in rows)
    return None if mapped <= 16 else f"{mapped} users are in its name space"


def _read_only(*places: str) -> str | None:
    writable = [place for place in places if Path(place).exists() and not os.statvfs(place).f_flag & os.ST_RDONLY]
    return f"{', '.join(writable)} can be written" if writable else None


def _no_home(_: Sequence[Path]) -> str | None:
    open_ones = []
    for place in ("/home", "/root", "/run/user"):
        with suppress(PermissionError, FileNotFoundError):
            open_ones += [place] if os.listdir(place) or os.access(place, os.W_OK) else []  # noqa: PTH208
    return f"{', '.join(open_ones)} is open" if open_ones else None


def _own_tmp(_: Sequence[Path]) -> str | None:
    own = {place for root, place in mounts() if "systemd-private-" in root or place in ("/tmp", "/var/tmp")}  # noqa: S108
    shared = [place for place in ("/tmp", "/var/tmp") if place not in own]  # noqa: S108
    return f"{', '.join(shared)} is everybody's" if shared else None


def _own_devices(_: Sequence[Path]) -> str | None:
    more = sorted(set(os.listdir("/dev")) - DEVICES)  # noqa: PTH208
    return f"/dev has {', '.join(more[:5])}" if more else None


def _nothing_to_execute(writable: Sequence[Path]) -> str | None:
    places = [*writable, Path("/dev/shm"), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    found = [str(place) for place in places if not os.statvfs(place).f_flag & os.ST_NOEXEC]
    return f"programs can be started from {', '.join(found)}" if found else None


def _no_writable_code(_: Sequence[Path]) -> str | None:
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return None
    return "memory can be written and executed"


def _address_families(_: Sequence[Path]) -> str | None:
    try:
        socket.socket(FORBIDDEN_FAMILY, socket.SOCK_SEQPACKET).close()
    except OSError:
        return None
    return "sockets of any family can be made"


_LOOKS: dict[Promise, Callable[[Sequence[Path]], str | None]] = {
    "no_new_privileges": lambda _: _is("NoNewPrivs", "1"),
    "no_capabilities": _no_capabilities,
    "system_calls": lambda _: _is("Seccomp", "2"),
    "non_root": lambda _: "it runs as root" if 0 in (os.getuid(), os.geteuid(), os.getegid()) else None,
    "own_users": _own_users,
    "read_only_system": lambda _: _read_only("/", "/etc", "/usr", "/var"),
    "no_home": _no_home,
    "own_tmp": _own_tmp,
    "own_devices": _own_devices,
    "nothing_to_execute": _nothing_to_execute,
    "no_writable_code": _no_writable_code,
    "address_families": _address_families,
    "kernel_tunables": lambda _: _read_only("/proc/sys"),
    "control_groups": lambda _: _read_only("/sys/fs/cgroup"),
    "closed_umask": lambda _: _is("Umask", "0077"),
}
