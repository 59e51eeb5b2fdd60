"""What `/proc` and `/sys` of a Linux target say: pure functions from their text to the models of the Facts port."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from systemmanager.errors import UnreadableOutput
from systemmanager.ports import Memory, Process

TICKS = 100
"""USER_HZ: what /proc counts CPU time in, on every architecture that runs an SSH server today."""

VIRTUAL = frozenset(
    {
        *("tmpfs", "devtmpfs", "squashfs", "overlay", "proc", "sysfs", "cgroup", "cgroup2", "ramfs", "nsfs", "devpts"),
        *("mqueue", "hugetlbfs", "debugfs", "tracefs", "securityfs", "pstore", "bpf", "configfs", "fusectl", "autofs"),
        *("binfmt_misc", "efivarfs", "rpc_pipefs", "selinuxfs"),
    }
)
"""File systems that hold no data of their own."""
NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "9p", "afs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.rclone"),
    }
)
"""File systems that may hang: asking a dead one for its size would hold up everything on the target."""


def _lines(text: str, what: str) -> list[str]:
    lines = text.splitlines()
    if not lines:
        raise UnreadableOutput(f"the target's {what} is empty")
    return lines


def _number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UnreadableOutput(f"the target's {what} holds {text[:40]!r} where a number belongs") from error


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Ticks since boot, all cores together, at one time; guest time is in user time already."""

    busy: int
    idle: int
    cores: int


def cpu_times(stat: str) -> CpuTimes:
    """`/proc/stat`."""
    lines = _lines(stat, "/proc/stat")
    fields = lines[0].split()
    if fields[:1] != ["cpu"] or len(fields) < 5:
        raise UnreadableOutput("the target's /proc/stat does not begin with cpu")
    user, nice, system, idle, iowait, irq, softirq, steal = (
        _number(value, "/proc/stat") for value in (fields[1:9] + ["0"] * 8)[:8]
    )
    cores = sum(1 for line in lines[1:] if re.match(r"cpu\d", line))
    return CpuTimes(user + nice + system + irq + softirq + steal, idle + iowait, cores or 1)


def busy_percent(before: CpuTimes, after: CpuTimes) -> float:
    """How busy between two samples. Counters may step back a little (iowait does): that counts as nothing."""
    busy, idle = max(0, after.busy - before.busy), max(0, after.idle - before.idle)
    return round(100 * busy / (busy + idle), 1) if busy + idle else 0.0


def memory(meminfo: str) -> Memory:
    """`/proc/meminfo`."""
    found: dict[str, int] = {}
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    total = found.get("MemTotal", 0)
    if not total:
        raise UnreadableOutput("the target's /proc/meminfo has no MemTotal")
    # Kernels before 3.14 don't say what is available.
    estimate = sum(found.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    available = min(found.get("MemAvailable", estimate), total)
    swap = found.get("SwapTotal", 0)
    return Memory(
        total=total,
        available=available,
        percent=round(100 * (total - available) / total, 1),
        swap_total=swap,
        swap_used=max(0, swap - found.get("SwapFree", 0)),
    )


def load(loadavg: str) -> list[float]:
    """`/proc/loadavg`: over 1, 5 and 15 minutes."""
    try:
        return [float(word) for word in loadavg.split()[:3]]
    except ValueError as error:
        raise UnreadableOutput("the target's /proc/loadavg is not three numbers") from error


def uptime(text: str) -> float:
    """`/proc/uptime`, in seconds."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError) as error:
        raise UnreadableOutput("the target's /proc/uptime is no number") from error


def distribution(os_release: str) -> str:
    """`/etc/os-release`: its PRETTY_NAME."""
    found = re.search(r"^PRETTY_NAME=(['\"]?)(.*?)\1\s*$", os_release, re.MULTILINE)
    return re.sub(r"\\(.)", r"\1", found[2]) if found else "Linux"


@dataclass(frozen=True, slots=True)
class Mount:
    device: str
    place: str
    kind: str


def mounts(text: str) -> list[Mount]:
    """`/proc/self/mounts`: file systems that hold data, each once; of those in memory and on the net only `/`."""
    found, seen = [], set()
    for line in text.splitlines():
        fields = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in line.split(" ")]
        if len(fields) < 3 or fields[0] in seen:
            continue
        if fields[1] != "/" and (fields[2] in VIRTUAL or fields[2] in NETWORK):
            continue
        seen.add(fields[0])
        found.append(Mount(fields[0], fields[1], fields[2]))
    return found


# --- Processes -------------------------------------------------------------------------------------------------------

_STATES = {
    "R": "running", "S": "sleeping", "D": "disk-sleep", "T": "stopped", "t": "tracing-stop", "Z": "zombie",
    "X": "dead", "x": "dead", "K": "wake-kill", "W": "waking", "I": "idle", "P": "parked",
}  # fmt: skip
_STAT = re.compile(r"^(\d+) \((.*?)\) ([A-Za-z])((?: -?\d+){20,})$", re.MULTILINE | re.DOTALL)
"""A name may hold anything, even `) ` and newlines; what follows it are numbers alone."""


@dataclass(frozen=True, slots=True)
class Stat:
    """One `/proc/PID/stat`: CPU in ticks, memory in pages."""

    name: str
    state: str
    group: int
    ticks: int
    pages: int


def process_stats(text: str) -> dict[int, Stat]:
    """Many `/proc/PID/stat`, one after the other."""
    found = {}
    for pid, name, state, rest in _STAT.findall(text):
        numbers = rest.split()
        found[int(pid)] = Stat(name, state, int(numbers[1]), int(numbers[10]) + int(numbers[11]), int(numbers[20]))
    return found


def by_pid(records: Sequence[str]) -> dict[int, list[str]]:
    """Records as `grep -H` prints them, `PID/file:text`, gathered by process."""
    found: dict[int, list[str]] = {}
    for record in records:
        pid, slash, rest = record.partition("/")
        if slash and pid.isdigit():
            found.setdefault(int(pid), []).append(rest.partition(":")[2])
    return found


def users(passwd: str) -> dict[int, str]:
    """`/etc/passwd` (or group): number to name; the first one counts."""
    found: dict[int, str] = {}
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdigit():
            found.setdefault(int(fields[2]), fields[0])
    return found


def full_name(name: str, words: Sequence[str]) -> str:
    """The kernel cuts names at 15 bytes; the command line often has the rest."""
    if len(name.encode()) >= 15 and words:
        longer = words[0].rpartition("/")[2]
        if longer.startswith(name):
            return longer
    return name


def processes(sections: Mapping[str, str]) -> list[Process]:
    """What the process probe prints; without the processes that are the probe itself."""
    before, after = process_stats(sections["before"]), process_stats(sections["after"])
    if not after:
        raise UnreadableOutput("the target's /proc shows no processes")
    elapsed = max(0.01, uptime(sections["ended"]) - uptime(sections["started"]))
    own, page = _number(sections["own"].strip(), "process id"), _number(sections["page"].strip() or "4096", "page size")
    total, names = memory(sections["meminfo"]).total, users(sections["passwd"])
    owners = {pid: texts[0].split()[:2] for pid, texts in by_pid(sections["uids"].splitlines()).items()}
    commands = by_pid(sections["commands"].split("\0"))
    found = []
    for pid, stat in after.items():
        if stat.group == own or len(owners.get(pid, ())) < 2:
            continue  # the probe itself, or gone in between
        uid = owners[pid][1]
        words, rss = commands.get(pid, []), stat.pages * page
        name = full_name(stat.name, words)
        spent = stat.ticks - before[pid].ticks if pid in before else 0
        found.append(
            Process(
                pid=pid,
                name=name,
                user=names.get(int(uid), uid) if uid.isdigit() else uid,
                cpu=round(100 * max(0, spent) / TICKS / elapsed, 1),
                memory=round(100 * rss / total, 1),
                rss=rss,
                state=_STATES.get(stat.state, stat.state),
                command=" ".join(words).strip()[:200] or f"[{name}]",
            )
        )
    return found
