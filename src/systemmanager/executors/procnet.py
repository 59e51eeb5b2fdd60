"""What a Linux target's `/proc/net` and `/sys/class/net` say: interfaces, counters, sockets."""

import ipaddress
import re
import socket
import struct
from collections.abc import Mapping

from systemmanager.errors import UnreadableOutput
from systemmanager.executors.procfs import by_pid, full_name
from systemmanager.ports import Connection, Interface, IoCounters


def counters(net_dev: str) -> list[IoCounters]:
    """`/proc/net/dev`."""
    found = []
    for line in net_dev.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        numbers = rest.split()
        if not name or len(numbers) < 12 or not all(number.isdigit() for number in numbers[:12]):
            raise UnreadableOutput("the target's /proc/net/dev has a line that is not name and counters")
        values = [int(number) for number in numbers]
        found.append(
            IoCounters(
                name=name.strip(),
                bytes_received=values[0],
                packets_received=values[1],
                errors_in=values[2],
                drops_in=values[3],
                bytes_sent=values[8],
                packets_sent=values[9],
                errors_out=values[10],
                drops_out=values[11],
            )
        )
    return sorted(found, key=lambda counter: counter.name)


def interfaces(sections: Mapping[str, str]) -> list[Interface]:
    """What the interface probe prints."""
    links: dict[str, dict[str, str]] = {}
    for line in sections["links"].splitlines():
        name, _, rest = line.partition("/")
        key, colon, value = rest.partition(":")
        if colon:
            links.setdefault(name, {})[key] = value.strip()
    given = addresses(sections["addresses"]) if sections["addresses"].strip() else _from_proc(sections)
    found = []
    for name, link in sorted(links.items()):
        mac, speed = link.get("address", ""), link.get("speed", "")
        running = link.get("operstate", "unknown") in ("up", "unknown")
        found.append(
            Interface(
                name=name,
                up=bool(int(link.get("flags", "0") or "0", 16) & 1) and running,
                addresses=given.get(name, []),
                mac=mac if mac and mac != "00:00:00:00:00:00" else None,
                mtu=int(link["mtu"]) if link.get("mtu", "").isdigit() else 0,
                speed=int(speed) if speed.isdigit() and int(speed) > 0 else None,
            )
        )
    return found


def addresses(ip_output: str) -> dict[str, list[str]]:
    """`ip -o addr`, which iproute2 and busybox print alike."""
    found: dict[str, list[str]] = {}
    for line in ip_output.splitlines():
        match = re.match(r"\d+:\s+([^\s@:]+)\S*\s+inet6?\s+([0-9a-fA-F.:]+)(?:\s+peer\s+\S+?)?(/\d+)?\s", line + " ")
        if match:
            peer = re.search(r"\speer\s+\S+(/\d+)", line)
            bits = match[3] or (peer[1] if peer else "")
            found.setdefault(match[1], []).append(match[2] + bits)
    return found


def _from_proc(sections: Mapping[str, str]) -> dict[str, list[str]]:
    """Without `ip`: IPv6 addresses as they stand there, IPv4 ones by the route that covers them."""
    found: dict[str, list[str]] = {}
    routes = []
    for line in sections["route"].splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and int(fields[2], 16) == 0 and int(fields[7], 16):
            net, mask = (struct.pack("<I", int(fields[index], 16)) for index in (1, 7))
            routes.append((ipaddress.ip_network((net, bin(int.from_bytes(mask, "big")).count("1"))), fields[0]))
    routes.append((ipaddress.ip_network("127.0.0.0/8"), "lo"))
    routes.sort(key=lambda route: -route[0].prefixlen)
    for text in dict.fromkeys(re.findall(r"-- ([0-9.]+)\n\s+/32 host LOCAL", sections["fib_trie"])):
        for network, name in routes:
            if ipaddress.ip_address(text) in network:
                found.setdefault(name, []).append(f"{text}/{network.prefixlen}")
                break
    for line in sections["if_inet6"].splitlines():
        fields = line.split()
        if len(fields) == 6:
            address = ipaddress.IPv6Address(bytes.fromhex(fields[0]))
            found.setdefault(fields[5], []).append(f"{address}/{int(fields[2], 16)}")
    return found


_TCP_STATES = {
    1: "established", 2: "syn_sent", 3: "syn_recv", 4: "fin_wait1", 5: "fin_wait2", 6: "time_wait", 7: "close",
    8: "close_wait", 9: "last_ack", 10: "listen", 11: "closing", 12: "syn_recv",
}  # fmt: skip


def endpoint(text: str) -> str | None:
    """`0100007F:0016` to `127.0.0.1:22`; None where there is no other end."""
    address, _, port = text.partition(":")
    number = int(port, 16)
    if not number:
        return None
    raw = bytes.fromhex(address)
    # The kernel prints each group of four bytes as one number of its own byte order: little endian, here.
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    if len(words) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, words)}:{number}"
    return f"[{socket.inet_ntop(socket.AF_INET6, words)}]:{number}"


def connections(sections: Mapping[str, str]) -> list[Connection]:
    """What the socket probe prints."""
    owners: dict[str, int] = {}
    for pid, inode in re.findall(r"^(?:/proc/)?(\d+)/fd socket:\[(\d+)\]$", sections["sockets"], re.MULTILINE):
        owners[inode] = max(int(pid), owners.get(inode, 0))
    commands = by_pid(sections["commands"].split("\0"))
    names = {
        pid: full_name(texts[0], commands.get(pid, [])) for pid, texts in by_pid(sections["names"].splitlines()).items()
    }
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in sections[protocol].splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10:
                raise UnreadableOutput(f"the target's /proc/net/{protocol} has a line that is too short")
            try:
                local, remote, state = endpoint(fields[1]), endpoint(fields[2]), int(fields[3], 16)
            except ValueError as error:
                raise UnreadableOutput(f"the target's /proc/net/{protocol} has a line that is not hex") from error
            pid = owners.get(fields[9])
            found.append(
                Connection(
                    protocol=protocol,
                    local=local or "",
                    remote=remote,
                    state=_TCP_STATES.get(state, "unknown") if protocol.startswith("tcp") else "",
                    pid=pid,
                    process=names.get(pid) if pid else None,
                )
            )
    return found
