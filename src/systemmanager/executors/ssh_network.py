"""TCP connections that start at an SSH target: direct-tcpip channels of its kept connection."""

import asyncio
from collections import deque
from collections.abc import Sequence

import anyio
import asyncssh
from anyio.abc import ByteStream

from systemmanager.addresses import parse
from systemmanager.executors.egress import Egress
from systemmanager.executors.ssh_connections import Kept
from systemmanager.executors.ssh_dial import channel_refused
from systemmanager.executors.ssh_files import sftp_of
from systemmanager.executors.ssh_resolve import resolved
from systemmanager.executors.ssh_sftp import small_file
from systemmanager.executors.ssh_shell import SshShell
from systemmanager.executors.vantage import DNS_PORT, Vantage, resolvers
from systemmanager.request import Permit

_HELD = 256 * 1024
"""Bytes that wait unread before the other side is told to pause."""


class ChannelStream(ByteStream):
    """A channel as anyio's byte stream, so that TLS and HTTP run over it as over a socket."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._error: Exception | None = None
        self._closed = False

    # What the channel calls.

    def connection_made(self, chan: "asyncssh.SSHTCPChannel[bytes]") -> None:
        self._channel = chan

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        self._arrived.set()
        if self._held > _HELD and self._channel:
            self._channel.pause_reading()

    def ended(self, error: Exception | None = None) -> None:
        self._ended, self._error = True, error
        self._arrived.set()
        self._writable.set()

    def pause(self) -> None:
        self._writable.clear()

    def resume(self) -> None:
        self._writable.set()

    # What anyio calls.

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while not self._chunks:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._ended:
                if self._error:
                    raise anyio.BrokenResourceError from self._error
                raise anyio.EndOfStream
            self._arrived.clear()
            await self._arrived.wait()
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        held, self._held = self._held, self._held - len(chunk)
        if held > _HELD >= self._held and self._channel:
            self._channel.resume_reading()
        return chunk

    async def send(self, item: bytes) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        await self._writable.wait()
        try:
            assert self._channel is not None
            self._channel.write(item)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        if self._channel and not self._channel.is_closing():
            self._channel.write_eof()

    async def aclose(self) -> None:
        self._closed = True
        self._arrived.set()
        if self._channel:
            self._channel.close()


class _Session(asyncssh.SSHTCPSession[bytes]):
    """The channel's side of a ChannelStream: both have a `connection_made`, so they are two objects."""

    def __init__(self, stream: ChannelStream) -> None:
        self._stream = stream

    def connection_made(self, chan: "asyncssh.SSHTCPChannel[bytes]") -> None:
        self._stream.connection_made(chan)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._stream.data_received(data)

    def eof_received(self) -> bool:
        self._stream.ended()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.ended(exc)

    def pause_writing(self) -> None:
        self._stream.pause()

    def resume_writing(self) -> None:
        self._stream.resume()


class SshNetwork(SshShell, Vantage):
    def __init__(self, permit: Permit, kept: Kept, dns_port: int = DNS_PORT) -> None:
        super().__init__(permit, kept)
        self.dns_port = dns_port
        self._own = parse(str(kept.connection.get_extra_info("peername", ("",))[0]))
        self.egress = Egress(permit, self._resolved, own=lambda address: address == self._own)

    async def _resolved(self, host: str) -> list[str]:
        return await resolved(self.run, self._kept, self.ask, host)

    async def dial(self, address: str, port: int, host: str) -> ByteStream:
        stream = ChannelStream()
        try:
            await self._kept.open(
                lambda: self._kept.connection.create_connection(lambda: _Session(stream), address, port)
            )
        except asyncssh.ChannelOpenError as error:
            if self._kept.gone:
                raise self._kept.lost() from error
            raise channel_refused(error, host, port, repr(self._permit.target.id)) from error
        return stream

    async def nameservers(self) -> Sequence[str]:
        return resolvers(await small_file(await sftp_of(self._kept), b"/etc/resolv.conf"))
