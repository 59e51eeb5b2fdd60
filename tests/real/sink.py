"""An address that nothing may reach: every packet that goes there is counted, whatever it is."""

import ctypes
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.conftest import need

_ETH_P_ALL, _SO_ATTACH_FILTER = 3, 26
_numbers = itertools.count(os.getpid())


@dataclass(frozen=True)
class Sink:
    """A loopback address with a listener on `port`; on a port of its own each other one is closed."""

    address: str
    port: int
    _packets: socket.socket

    @property
    def packets(self) -> int:
        """Packets that were sent to the address since it was last asked."""
        count = 0
        while True:
            try:
                self._packets.recv(65535, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return count
            count += 1


def own_loopback(second: int) -> str:
    """A loopback address that no other test has now."""
    number = next(_numbers)
    return f"127.{second}.{number // 250 % 250}.{number % 250 + 1}"


@contextmanager
def sink() -> Iterator[Sink]:
    need("root", None if os.geteuid() == 0 else "packets are only counted by root")
    address = own_loopback(66)
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as packets,
        socket.create_server((address, 0)) as listener,
    ):
        _only_to(packets, address)
        packets.bind(("lo", _ETH_P_ALL))
        made = Sink(address, listener.getsockname()[1], packets)
        assert made.packets >= 0  # what came before the filter was there
        yield made


def _only_to(packets: socket.socket, address: str) -> None:
    """A classic BPF filter (socket(7)): the packet's IPv4 destination, at offset 16, is the address."""
    wanted = int.from_bytes(socket.inet_aton(address), "big")
    steps = ((0x20, 0, 0, 16), (0x15, 0, 1, wanted), (0x06, 0, 0, 65535), (0x06, 0, 0, 0))
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(program)
    packets.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
    )
