"""One bounded HTTP request over any connection, and what every HTTP answer here goes through."""

import ssl
import time
import zlib
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

import anyio
import httpcore
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from systemmanager import __version__
from systemmanager.errors import ConnectionLost, TargetError, TlsFailed, UnreadableOutput
from systemmanager.executors.vantage import timed_out
from systemmanager.ports import HttpAnswer

Connect = Callable[[str, int, float], Awaitable[ByteStream]]

AGENT = f"systemmanager/{__version__}"
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError)
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_EOF")


@cache
def trusted() -> ssl.SSLContext:
    """The trust store of the gateway's system, loaded once: that takes 20 ms."""
    return ssl.create_default_context()


async def fetch(connect: Connect, method: str, url: str, timeout: float, *, limit: int) -> HttpAnswer:
    """One request, with no body, cookie, credential, proxy or redirect.

    What comes after `timeout` seconds or beyond `limit` bytes is cut. Raises `TlsFailed`, `ConnectionLost`,
    `UnreadableOutput` and whatever `connect` raises.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    network, started = _Network(connect, timeout), time.perf_counter()
    try:
        async with httpcore.AsyncConnectionPool(trusted(), network_backend=network, max_connections=1) as pool:
            with anyio.fail_after(timeout) as scope:
                response = await pool.handle_async_request(_request(method, parts, port))
            network.took["first_byte"] = time.perf_counter() - started - sum(network.took.values())
            try:
                content = await _content(response, limit, scope.deadline)
                tls = tls_facts(response.extensions["network_stream"])
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
    except TimeoutError as error:
        raise not_http(f"{host}:{port}", network.heard) if network.heard else timed_out(host, port, timeout) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise broken(error, f"{host}:{port}", network.heard) from error
    return HttpAnswer(
        status=response.status,
        headers=_texts(response),
        body=bytes(content.body),
        elapsed=time.perf_counter() - started,
        truncated=content.cut,
        late=content.late,
        received=content.received,
        version=response.extensions.get("http_version", b"HTTP/1.1").decode("ascii", "replace"),
        phases=network.took,
        tls=tls,
    )


def _request(method: str, parts: SplitResult, port: int) -> httpcore.Request:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [("Host", parts.netloc), ("User-Agent", AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity")]
    headers += [("Connection", "close")] + ([("Content-Length", "0")] if method == "POST" else [])
    url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=port, target=path)
    return httpcore.Request(method, url, headers=headers)


async def _content(response: httpcore.Response, limit: int, deadline: float) -> "Content":
    """What comes of the body until the deadline; a server that breaks off has still answered."""
    content = Content(_texts(response).get("content-encoding", ""), limit)
    with anyio.move_on_after(max(0.0, deadline - anyio.current_time())) as scope:
        try:
            await content.read(response.aiter_stream())
        except (httpcore.NetworkError, httpcore.ProtocolError):
            content.cut = True
    content.late = scope.cancelled_caught
    content.cut = content.cut or content.late
    return content


def _texts(response: httpcore.Response) -> Mapping[str, str]:
    texts: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        texts[name] = f"{texts[name]}, {value}" if name in texts else value
    return texts


class Content:
    """A body while it comes in, decoded no further than the bound: a bomb unpacks to `limit` bytes."""

    def __init__(self, encoding: str, limit: int) -> None:
        self.body = bytearray()
        self.received = 0
        self.cut = self.late = False
        self._limit = limit
        zipped = encoding.strip().lower() in ("gzip", "x-gzip", "deflate")
        self._unpack = zlib.decompressobj(wbits=47) if zipped else None  # 47: gzip or zlib, told by the first bytes

    async def read(self, chunks: AsyncIterable[bytes]) -> None:
        async for chunk in chunks:
            self.received += len(chunk)
            room = self._limit - len(self.body)
            plain = self._plain(chunk, room + 1)
            self.body += plain[:room]
            if len(plain) > room or self.received > self._limit:
                self.cut = True
                return

    def _plain(self, chunk: bytes, most: int) -> bytes:
        if self._unpack is None:
            return chunk
        try:
            return self._unpack.decompress(chunk, most)
        except zlib.error:
            self._unpack = None
            return chunk


class _Network(httpcore.AsyncNetworkBackend):
    """httpcore's network, so that every byte takes the target's own way.

    `took` holds the seconds of each step, `heard` the beginning of what came back.
    """

    def __init__(self, connect: Connect, timeout: float) -> None:
        self._connect, self._timeout = connect, timeout
        self.took: dict[str, float] = {}
        self.heard = b""

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        started = time.perf_counter()
        stream = await self._connect(host, port, self._timeout)
        self.took["connect"] = time.perf_counter() - started
        return _Wire(stream, f"{host}:{port}", self)


class _Wire(httpcore.AsyncNetworkStream):
    def __init__(self, stream: ByteStream, peer: str, network: _Network) -> None:
        self._stream, self._peer, self._network = stream, peer, network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            received = await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except _BROKEN as error:
            raise httpcore.ReadError(str(error)) from error
        self._network.heard = self._network.heard or received[:64]
        return received

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            if buffer:
                await self._stream.send(buffer)
        except _BROKEN as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        started = time.perf_counter()
        try:
            secured = await TLSStream.wrap(
                self._stream, hostname=server_hostname, ssl_context=ssl_context, standard_compatible=False
            )
        except (*_BROKEN, anyio.EndOfStream) as error:
            await self.aclose()
            raise broken(error, self._peer) from error
        self._network.took["tls"] = time.perf_counter() - started
        return _Wire(secured, self._peer, self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.extra(TLSAttribute.ssl_object, None) if info == "ssl_object" else None  # noqa: S610


def tls_facts(stream: Any) -> Mapping[str, str] | None:
    """Protocol and cipher of an httpcore connection, None without TLS."""
    secured = stream.get_extra_info("ssl_object")
    if secured is None:
        return None
    cipher = secured.cipher()
    return {"protocol": secured.version() or "?", "cipher": cipher[0] if cipher else "?"}


def broken(error: BaseException, peer: str, heard: bytes = b"") -> TargetError:
    """What a failed exchange with `peer` means, for a person. `heard` is the beginning of what it said."""
    cause = next((one for one in causes(error) if isinstance(one, ssl.SSLError)), None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TlsFailed(
            f"the certificate of {peer} is not to be trusted: {cause.verify_message}",
            hint="check_ssl_certificate says what is wrong with it.",
        )
    if isinstance(cause, ssl.SSLError):
        if any(reason in str(cause) for reason in _NOT_TLS):
            return TlsFailed(f"{peer} does not speak TLS", hint="Try http:// or another port.")
        return TlsFailed(f"the TLS handshake with {peer} failed: {cause.reason or cause.strerror or 'broken off'}")
    if heard:
        return not_http(peer, heard)
    return ConnectionLost(f"{peer} closed the connection before it answered", hint="Is it another kind of server?")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and everything behind it."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from causes(one)
    if behind := error.__cause__ or error.__context__:
        yield from causes(behind)


def not_http(peer: str, heard: bytes) -> UnreadableOutput:
    return UnreadableOutput(
        f"{peer} answered something that is not HTTP, or no whole header",
        hint="Is it another kind of server?",
        details={"began": heard.decode("ascii", "replace")},
    )
