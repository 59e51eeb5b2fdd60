"""What /proc says, as text, and what is made of it; strange and hostile text too."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import UnreadableOutput
from systemmanager.executors import procfs, procnet, ssh_facts
from tests.conftest import need

STAT = "cpu  100 10 50 800 40 5 5 0 30 0\ncpu0 50 5 25 400 20 2 3 0 15 0\ncpu1 50 5 25 400 20 3 2 0 15 0\nintr 1 2 3\n"


def test_cpu_time_leaves_guests_out_and_counts_cores() -> None:
    assert procfs.cpu_times(STAT) == procfs.CpuTimes(busy=170, idle=840, cores=2)
    later = procfs.CpuTimes(busy=245, idle=865, cores=2)
    assert procfs.busy_percent(procfs.cpu_times(STAT), later) == 75.0


def test_an_old_kernel_has_fewer_columns() -> None:
    assert procfs.cpu_times("cpu 1 2 3 4\n") == procfs.CpuTimes(busy=6, idle=4, cores=1)


def test_counters_that_step_back_are_no_negative_load() -> None:
    before, after = procfs.CpuTimes(100, 100, 1), procfs.CpuTimes(100, 90, 1)
    assert procfs.busy_percent(before, after) == 0.0


def test_memory_with_and_without_what_is_available() -> None:
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 150 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n"
    old = procfs.memory(text)
    assert (old.available, old.percent, old.swap_used) == (300 * 1024, 70.0, 6 * 1024)
    assert procfs.memory(text + "MemAvailable: 500 kB\n").percent == 50.0


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (procfs.cpu_times, ""),
        (procfs.cpu_times, "nonsense"),
        (procfs.cpu_times, "cpu a b c d"),
        (procfs.memory, ""),
        (procfs.memory, "MemTotal: many kB"),
        (procfs.load, "a b c"),
        (procfs.uptime, ""),
        (procnet.counters, "a\nb\nlo: 1 2 3\n"),
        (procnet.counters, "a\nb\nno colon at all\n"),
    ],
)
def test_what_is_not_proc_is_said(read: Any, text: str) -> None:
    with pytest.raises(UnreadableOutput):
        read(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME=x\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n', "Debian GNU/Linux 12 (bookworm)"),
        ("PRETTY_NAME='Alpine Linux v3.20'\n", "Alpine Linux v3.20"),
        ("PRETTY_NAME=Arch\n", "Arch"),
        ('PRETTY_NAME="a \\"b\\""\n', 'a "b"'),
        ("", "Linux"),
    ],
)
def test_distribution(text: str, name: str) -> None:
    assert procfs.distribution(text) == name


def test_mounts_are_those_that_hold_data_once_each() -> None:
    text = (
        "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
        "/dev/sda1 /srv/a\\040b ext4 rw 0 0\n/dev/sda1 /again ext4 rw 0 0\nnas:/x /mnt nfs4 rw 0 0\n"
        "/dev/sdb /data xfs rw 0 0\n"
    )
    assert [(one.place, one.kind) for one in procfs.mounts(text)] == [
        ("/", "overlay"),
        ("/srv/a b", "ext4"),
        ("/data", "xfs"),
    ]


def stat_line(pid: int, name: str, ticks: int = 5) -> str:
    return (
        f"{pid} ({name}) S 1 {pid} {pid} 0 -1 4194560 1 0 0 0 {ticks} 0 0 0 20 0 1 0 100 1000 25 18446744073709551615\n"
    )


@pytest.mark.parametrize("name", ["bash", "a b", "a) R 1", "((x))", "two\nlines", "", "x) S 1 2 3\n4 (y"])
def test_a_process_may_be_called_anything(name: str) -> None:
    found = procfs.process_stats(stat_line(7, name) + stat_line(8, "next"))
    assert found[7] == procfs.Stat(name, "S", 7, 5, 25) and found[8].name == "next" and set(found) == {7, 8}


def sections(**fields: str) -> dict[str, str]:
    return {
        "own": "50\n", "page": "4096\n", "passwd": "root:x:0:0::/root:/bin/sh\nops:x:1000:1000::/:/bin/sh\n",
        "meminfo": "MemTotal: 1000 kB\n", "started": "10.0 1\n", "ended": "10.5 1\n",
        "before": stat_line(7, "worker", 100) + stat_line(50, "sh"),
        "after": stat_line(7, "worker", 125) + stat_line(9, "a-very-long-nam") + stat_line(10, "gone")
        + stat_line(50, "sh"),
        "uids": "7/status:Uid:\t1000\t1000\t1000\t1000\n9/status:Uid:\t4242\t0\t0\t0\n50/status:Uid:\t0\t0\t0\t0\n",
        "commands": "7/cmdline:worker\x007/cmdline:-x\x009/cmdline:/opt/a-very-long-name-indeed\x00"
        "7/cmdline:9/cmdline:no\x00",
        **fields,
    }  # fmt: skip


def test_processes_from_two_samples() -> None:
    first, second = procfs.processes(sections())
    assert (first.pid, first.user, first.cpu, first.rss, first.memory) == (7, "ops", 50.0, 102400, 10.0)
    assert first.command == "worker -x 9/cmdline:no"
    assert (second.pid, second.user, second.name, second.cpu) == (9, "4242", "a-very-long-name-indeed", 0.0)


def test_no_processes_is_no_answer() -> None:
    with pytest.raises(UnreadableOutput):
        procfs.processes(sections(after=""))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0100007F:0016", "127.0.0.1:22"),
        ("00000000:0000", None),
        ("00000000000000000000000001000000:0050", "[::1]:80"),
        ("0000000000000000FFFF00000100007F:0050", "[::ffff:127.0.0.1]:80"),
    ],
)
def test_endpoints(text: str, shown: str | None) -> None:
    assert procnet.endpoint(text) == shown


def test_addresses_as_iproute2_and_busybox_print_them() -> None:
    text = (
        "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever\n"
        "2: eth0@if5    inet 10.0.0.2/24 brd 10.0.0.255 scope global eth0\n"
        "2: eth0    inet6 fe80::1/64 scope link \n"
        "3: ppp0    inet 10.1.0.1 peer 10.1.0.2/32 scope global ppp0\n"
    )
    assert procnet.addresses(text) == {
        "lo": ["127.0.0.1/8"],
        "eth0": ["10.0.0.2/24", "fe80::1/64"],
        "ppp0": ["10.1.0.1/32"],
    }


def probed(script: str, path: str, shell: str) -> dict[str, str]:
    """What a probe prints on this machine, with the programs of one folder."""
    command = [shell, "-c", script, "sh", "MARK"]
    said = subprocess.run(command, capture_output=True, env={"PATH": path}, check=True).stdout.decode(errors="replace")
    return {name: text for name, _, text in (part.partition("\n") for part in said.split("\nMARK ")[1:])}


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A machine that has busybox alone, like Alpine."""
    program = shutil.which("busybox")
    need("busybox", None if program else "busybox is not installed")
    folder = tmp_path / "bin"
    folder.mkdir()
    subprocess.run([str(program), "--install", "-s", str(folder)], check=True, capture_output=True)
    return folder


def test_the_probes_need_no_more_than_busybox(busybox: Path) -> None:
    shell, path = str(busybox / "sh"), str(busybox)
    processes = {one.pid: one for one in procfs.processes(probed(ssh_facts.PROCESSES, path, shell))}
    assert "python" in processes[os.getpid()].command or "pytest" in processes[os.getpid()].command
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = procnet.connections(probed(ssh_facts.CONNECTIONS, path, shell))
        (ours,) = [one for one in found if one.local == f"127.0.0.1:{server.getsockname()[1]}"]
        assert (ours.state, ours.pid) == ("listen", os.getpid()) and ours.process
    interfaces = probed(ssh_facts.INTERFACES, path, shell)
    with_ip = {one.name: set(one.addresses) for one in procnet.interfaces(interfaces)}
    without = {one.name: set(one.addresses) for one in procnet.interfaces({**interfaces, "addresses": ""})}
    assert with_ip == without and "127.0.0.1/8" in with_ip["lo"]
