"""Tries what the gateway's unit forbids, and prints what came of each: {"name": "done" or why not}.

It runs in the unit in the gateway's place, and outside it to show that the machine itself would let it be done.
python3 -I forbidden.py STATE_FOLDER ADDRESS:PORT
"""

import ctypes
import errno
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
STATE = Path(sys.argv[1])
HOST, PORT = sys.argv[2].rsplit(":", 1)
NUMBERS = {
    "x86_64": {
        "reboot": 169,
        "bpf": 321,
        "perf_event_open": 298,
        "add_key": 248,
        "finit_module": 313,
        "kexec_load": 246,
    },
    "aarch64": {
        "reboot": 142,
        "bpf": 280,
        "perf_event_open": 241,
        "add_key": 217,
        "finit_module": 273,
        "kexec_load": 104,
    },
}[os.uname().machine]
NEWUSER, NEWNET = 0x10000000, 0x40000000


def libc(name: str, *arguments: object, allowed: tuple[int, ...] = ()) -> None:
    """Call a function of libc's; numbers in `allowed` are errors that only who may is told."""
    if getattr(LIBC, name)(*arguments) == -1 and (number := ctypes.get_errno()) not in allowed:
        raise OSError(number, os.strerror(number))


def syscall(name: str, *arguments: object, allowed: tuple[int, ...] = ()) -> None:
    libc("syscall", NUMBERS[name], *arguments, allowed=allowed)


def written(path: str) -> None:
    place = Path(path)
    existed = place.exists()
    with place.open("a"):
        pass
    if not existed:
        place.unlink()


def overwritten(path: str) -> None:
    place = Path(path)
    place.write_text(place.read_text())


def in_child(what: Callable[[], object]) -> None:
    """What can't be taken back is done by a child, which tells by its status."""
    if (child := os.fork()) == 0:
        try:
            what()
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError(status, os.strerror(status) if status > 0 else f"killed by signal {-status}")


def executed(folder: str) -> None:
    program = Path(folder, f"forbidden-{os.getpid()}")
    program.write_text("#!/bin/sh\nexit 0\n")
    try:
        program.chmod(0o700)
        subprocess.run([program], check=True)
    finally:
        program.unlink()


def made_setuid() -> None:
    program = STATE / f"forbidden-{os.getpid()}"
    program.touch()
    try:
        program.chmod(0o4755)
    finally:
        program.unlink()


def device() -> None:
    place = STATE / f"forbidden-{os.getpid()}"
    os.mknod(place, 0o20600, os.makedev(1, 3))
    place.unlink()


def code_written() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def code_after_writing() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        place = ctypes.addressof(ctypes.c_char.from_buffer(page))
        LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc("mprotect", place, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)


def others_seen() -> None:
    """The environment of a process of root's, or at least that there is one."""
    if not Path("/proc/1/status").exists():
        raise PermissionError(errno.EPERM, "process 1 is not to be seen")
    Path("/proc/1/environ").read_bytes()


def connected() -> None:
    with socket.create_connection((HOST, int(PORT)), timeout=3):
        pass


def mounted() -> None:
    libc("mount", b"none", b"/mnt", b"tmpfs", 0, None)
    libc("umount2", b"/mnt", 0)


def shared_tmp() -> None:
    Path("/tmp/everybodys").read_text()  # noqa: S108


def control_group() -> None:
    group = Path("/sys/fs/cgroup/forbidden")
    group.mkdir()
    group.rmdir()


def named_machine() -> None:
    name = os.uname().nodename.encode()
    libc("sethostname", name, len(name))


FORBIDDEN: dict[str, Callable[[], object]] = {
    "write /etc": lambda: written("/etc/forbidden"),
    "write /usr": lambda: written("/usr/forbidden"),
    "write /var": lambda: written("/var/lib/forbidden"),
    "write the targets": lambda: overwritten("/etc/systemmanager/targets.yaml"),
    "write a kernel setting": lambda: overwritten("/proc/sys/net/ipv4/ip_forward"),
    "make a control group": control_group,
    "read the credential store": lambda: Path("/etc/credstore/systemmanager.API_TOKEN").read_text(),
    "read the passwords": lambda: Path("/etc/shadow").read_text(),
    "read root's home": lambda: list(Path("/root").iterdir()),
    "read homes": lambda: list(Path("/home").iterdir()),
    "read everybody's /tmp": shared_tmp,
    "see others' processes": others_seen,
    "signal the init process": lambda: os.kill(1, 0),
    "become root": lambda: in_child(lambda: os.setresuid(0, 0, 0)),
    "mount": mounted,
    "make a user namespace": lambda: in_child(lambda: libc("unshare", NEWUSER)),
    "make a network namespace": lambda: in_child(lambda: libc("unshare", NEWNET)),
    "change the root folder": lambda: in_child(lambda: os.chroot("/")),
    "trace a process": lambda: in_child(lambda: libc("ptrace", 0, 0, None, None)),
    "load a BPF program": lambda: syscall("bpf", 0, None, 0, allowed=(errno.EINVAL, errno.EFAULT, errno.E2BIG)),
    "watch the kernel's counters": lambda: syscall("perf_event_open", None, 0, -1, -1, 0, allowed=(errno.EFAULT,)),
    "keep a key in the kernel": lambda: syscall("add_key", b"user", b"forbidden", b"x", 1, -3),
    "load a kernel module": lambda: syscall("finit_module", -1, b"", 0, allowed=(errno.EBADF,)),
    "load another kernel": lambda: syscall("kexec_load", 0, 0, None, 0, allowed=(errno.EBUSY,)),
    "restart the machine": lambda: syscall("reboot", 0, 0, 0, None, allowed=(errno.EINVAL,)),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME)),
    "name the machine": named_machine,
    "read the kernel's log": lambda: libc("klogctl", 10, None, 0),
    "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "open a socket of an odd family": lambda: socket.socket(38, socket.SOCK_SEQPACKET).close(),
    "make a device": device,
    "open the kernel's messages": lambda: os.close(os.open("/dev/kmsg", os.O_WRONLY)),
    "have memory to write and execute": code_written,
    "execute memory that was written": code_after_writing,
    "execute from the state folder": lambda: executed(str(STATE)),
    "execute from /tmp": lambda: executed("/tmp"),  # noqa: S108
    "execute from /dev/shm": lambda: executed("/dev/shm"),  # noqa: S108
    "make a set-uid program": made_setuid,
    "change the personality": lambda: in_child(lambda: libc("personality", 0x0008)),
    "run in real time": lambda: in_child(lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))),
    "raise its priority": lambda: in_child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)),
    "connect to a strange address": connected,
}


def main() -> None:
    said = {}
    for name, forbidden in FORBIDDEN.items():
        try:
            forbidden()
            said[name] = "done"
        except (OSError, subprocess.SubprocessError) as error:
            said[name] = str(error)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
