"""Facts of the gateway's own machine, by psutil."""

import asyncio
import os
import platform
import socket
import time
from collections.abc import Sequence

import psutil

from systemmanager.executors.procfs import VIRTUAL
from systemmanager.ports import Connection, Cpu, Disk, Interface, IoCounters, Memory, Process, SystemStatus

INTERVAL = 0.2
"""Seconds between the two samples that a CPU percentage comes from."""


class LocalFacts:
    async def status(self) -> SystemStatus:
        before = psutil.cpu_times()
        await asyncio.sleep(INTERVAL)
        after = psutil.cpu_times()
        return await asyncio.to_thread(_status, _busy(before, after))

    async def processes(self) -> Sequence[Process]:
        before = await asyncio.to_thread(_cpu_seconds)
        started = time.monotonic()
        await asyncio.sleep(INTERVAL)
        return await asyncio.to_thread(_processes, before, started)

    async def interfaces(self) -> Sequence[Interface]:
        return await asyncio.to_thread(_interfaces)

    async def counters(self) -> Sequence[IoCounters]:
        return [
            IoCounters(
                name=name,
                bytes_sent=seen.bytes_sent,
                bytes_received=seen.bytes_recv,
                packets_sent=seen.packets_sent,
                packets_received=seen.packets_recv,
                errors_in=seen.errin,
                errors_out=seen.errout,
                drops_in=seen.dropin,
                drops_out=seen.dropout,
            )
            for name, seen in sorted(psutil.net_io_counters(pernic=True).items())
        ]

    async def connections(self) -> Sequence[Connection]:
        return await asyncio.to_thread(_connections)


def _busy(before: object, after: object) -> float:
    """Percent busy between two samples of CPU times; guest time is counted in user time already."""
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    busy = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in names)
    idle = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in ("idle", "iowait"))
    return round(100 * busy / (busy + idle), 1) if busy + idle > 0 else 0.0


def _status(busy: float) -> SystemStatus:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return SystemStatus(
        hostname=socket.gethostname(),
        system=f"{_distribution()}, {platform.system()} {platform.release()}",
        uptime=int(time.time() - psutil.boot_time()),
        cpu=Cpu(percent=busy, cores=psutil.cpu_count() or 1, load=[round(value, 2) for value in os.getloadavg()]),
        memory=Memory(
            total=memory.total,
            available=memory.available,
            percent=round(100 * (memory.total - memory.available) / memory.total, 1),
            swap_total=swap.total,
            swap_used=swap.used,
        ),
        disks=_disks(),
    )


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return platform.system()


def _disks() -> list[Disk]:
    disks, seen = [], set()
    for part in psutil.disk_partitions(all=True):
        if (part.fstype in VIRTUAL and part.mountpoint != "/") or part.device in seen:
            continue
        try:
            usage = psutil.disk_usage(part.mountpoint)
        except OSError:
            continue
        if usage.total == 0:
            continue
        seen.add(part.device)
        disks.append(
            Disk(
                mount=part.mountpoint,
                device=part.device,
                filesystem=part.fstype,
                total=usage.total,
                free=usage.free,
                percent=round(usage.percent, 1),
            )
        )
    return disks


def _cpu_seconds() -> dict[int, float]:
    seconds = {}
    for process in psutil.process_iter():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds[process.pid] = times.user + times.system
    return seconds


def _processes(before: dict[int, float], started: float) -> list[Process]:
    elapsed, total = time.monotonic() - started, psutil.virtual_memory().total
    found = []
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                spent = times.user + times.system - before.get(process.pid, times.user + times.system)
                found.append(
                    Process(
                        pid=process.pid,
                        name=process.name(),
                        user=process.username(),
                        cpu=round(100 * max(0.0, spent) / elapsed, 1),
                        memory=round(100 * memory.rss / total, 1),
                        rss=memory.rss,
                        state=process.status(),
                        command=" ".join(process.cmdline())[:200] or f"[{process.name()}]",
                    )
                )
        except psutil.Error:
            continue
    return found


def _interfaces() -> list[Interface]:
    states = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        state = states.get(name)
        mac = next((one.address for one in addresses if one.family == psutil.AF_LINK), None)
        found.append(
            Interface(
                name=name,
                up=bool(state and state.isup),
                addresses=[text for one in addresses if (text := _with_prefix(one.family, one.address, one.netmask))],
                mac=mac if mac and mac != "00:00:00:00:00:00" else None,
                mtu=state.mtu if state else 0,
                speed=state.speed if state and state.speed > 0 else None,
            )
        )
    return found


def _with_prefix(family: int, address: str, netmask: str | None) -> str | None:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    bits = sum(byte.bit_count() for byte in socket.inet_pton(family, netmask)) if netmask else None
    return address.partition("%")[0] + (f"/{bits}" if bits is not None else "")


_PROTOCOLS = {
    (socket.AF_INET, socket.SOCK_STREAM): "tcp",
    (socket.AF_INET6, socket.SOCK_STREAM): "tcp6",
    (socket.AF_INET, socket.SOCK_DGRAM): "udp",
    (socket.AF_INET6, socket.SOCK_DGRAM): "udp6",
}


def _connections() -> list[Connection]:
    # Asked so, what ends meanwhile is left out.
    found, names = [], {process.pid: process.info["name"] for process in psutil.process_iter(["name"])}
    for seen in psutil.net_connections(kind="inet"):
        found.append(
            Connection(
                protocol=_PROTOCOLS.get((seen.family, seen.type), "other"),
                local=_endpoint(seen.laddr) or "",
                remote=_endpoint(seen.raddr),
                state="" if seen.status == psutil.CONN_NONE else seen.status.lower(),
                pid=seen.pid,
                process=names.get(seen.pid) if seen.pid else None,
            )
        )
    return found


def _endpoint(address: tuple[str, int] | tuple[()]) -> str | None:
    if not address:
        return None
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
