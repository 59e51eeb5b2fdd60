"""Who is at the other end of a connection: a user of this machine on a unix socket, or whom a proxy speaks for."""

import asyncio
import ipaddress
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UID = "uid:"
"""What the name of a peer on a unix socket begins with; no address does."""

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MOST_OF_A_HEADER = 536
"""Bytes of a PROXY header with the extensions that are passed over."""

_FAMILIES = {0x11: (4, 12), 0x21: (16, 36)}
"""TCP over IPv4 and over IPv6: bytes of an address, and of both addresses and ports."""


class BadHeader(ValueError):
    """What should be a PROXY header is none."""


def read_header(data: bytes) -> tuple[tuple[str, int] | None, bytes] | None:
    """The client that a PROXY header, version 2, names, and what follows it; None while it is not whole yet.

    The client is None when the proxy speaks for itself. Raises `BadHeader`. Source: HAProxy, proxy-protocol.txt, 2.2.
    """
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise BadHeader("no PROXY header, version 2")
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, len(SIGNATURE))
    if command not in (0x20, 0x21) or length > MOST_OF_A_HEADER:
        raise BadHeader("a PROXY header of another version, command or length")
    if len(data) < 16 + length:
        return None
    if command == 0x20:
        return None, data[16 + length :]
    size, least = _FAMILIES.get(family, (0, 0))
    if not size or length < least:
        raise BadHeader("a PROXY header for something that is no TCP")
    address = ipaddress.ip_address(data[16 : 16 + size])
    (port,) = struct.unpack_from("!H", data, 16 + 2 * size)
    return (str(address), port), data[16 + length :]


def with_peers(base: type[HttpToolsProtocol], *, proxied: bool = False) -> type[HttpToolsProtocol]:
    """A connection that knows its peer: on a unix socket by the kernel's word; with `proxied` on loopback, where a
    PROXY header must come first, by that. Nothing that a remote client sends can put another name there."""

    class WithPeer(base):  # type: ignore[misc, valid-type]
        client: tuple[str, int] | None
        _waiting: bytes | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            found = transport.get_extra_info("socket")
            if found is not None and found.family == socket.AF_UNIX:
                credentials = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                self.client = (f"{UID}{struct.unpack('3i', credentials)[1]}", 0)
            elif proxied and self.client is not None and ipaddress.ip_address(self.client[0]).is_loopback:
                self._waiting = b""

        def data_received(self, data: bytes) -> None:
            if self._waiting is not None:
                self._waiting += data
                try:
                    header = read_header(self._waiting)
                except BadHeader:
                    self.transport.abort()
                    return
                if header is None:
                    return
                self.client, data = header
                self._waiting = None
                if not data:
                    return
            super().data_received(data)

    return WithPeer


class UnixListener:
    """A listening unix socket at a path; a socket that nobody listens on any more is replaced. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
            path.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(str(path))
            path.chmod(0o660)
        except OSError:
            self.socket.close()
            raise

    async def serve(self, make: Any) -> asyncio.AbstractServer:
        return await asyncio.get_running_loop().create_unix_server(make, sock=self.socket, backlog=128)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
