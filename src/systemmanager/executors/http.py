"""Targets of kind http: an API below one base URL, asked with the target's own credentials."""

import asyncio
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import unquote, urljoin, urlsplit

import anyio
import httpx

from systemmanager.errors import (
    AuthRefused,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArguments,
    NotConfigured,
    ServerFailed,
    TargetError,
    TlsFailed,
    UnreadableOutput,
)
from systemmanager.executors import Surroundings, unsupported
from systemmanager.executors.egress import Egress, Resolve
from systemmanager.executors.http_wire import JudgedTransport, way_out
from systemmanager.executors.local_network import is_own, resolved
from systemmanager.executors.web import AGENT, Content, broken, trusted
from systemmanager.ports import HttpAnswer
from systemmanager.request import Permit
from systemmanager.target import BasicAuth, BearerAuth, HeaderAuth, HttpConnection, HttpTarget, Target

CONNECT = 10.0
"""Seconds for a connection with its TLS handshake; the call's deadline bounds the rest."""

SILENCE = 60.0
"""Seconds without a byte after which a server is given up."""

REDIRECTS = 5
_HUNG_UP = re.compile("disconnected|closed connection")

# As many connections as there are calls: hung targets must not keep the others from getting one.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=15)
_TIMEOUT = httpx.Timeout(SILENCE, connect=CONNECT)


Trust = tuple[bool, str | None, tuple[str, ...] | None, int]
"""How certificates are judged and which hosts are open: calls that differ in it share no connection. And a number of
the server: a pool goes through all of its connections on each request, so that one for a thousand would be slow."""

POOLS = 32


@dataclass
class _Kept:
    """A client with its pool; one that is retired is closed when its last call has ended."""

    client: httpx.AsyncClient
    calls: int = 0
    retired: bool = False

    async def release(self) -> None:
        self.calls -= 1
        if self.retired and not self.calls:
            await self.client.aclose()


class HttpExecutor:
    """Keeps a few clients per way of judging certificates; credentials go with each request and are never kept."""

    def __init__(self, _: Surroundings, resolve: Resolve = resolved) -> None:
        self._resolve = resolve
        self._kept: dict[Trust, _Kept] = {}
        self._making = asyncio.Lock()

    async def open(self, permit: Permit, port: str, stack: AsyncExitStack) -> "HttpApi":
        if port not in ("Http", "Probe") or not isinstance(permit.target, HttpTarget):
            raise unsupported(permit, port)
        connection = permit.target.connection
        pool = hash(connection.base_url) % POOLS
        trust = (connection.tls_verify, connection.cert_path, permit.target.constraints.hosts, pool)
        if trust not in self._kept:
            async with self._making:  # a call on a thousand targets reads the certificates once
                if trust not in self._kept:
                    context = await asyncio.to_thread(_context, connection.tls_verify, connection.cert_path)
                    self._kept[trust] = _Kept(_client(context))
        kept = self._kept[trust]
        kept.calls += 1
        stack.push_async_callback(kept.release)
        return HttpApi(permit.target, kept.client, _egress(permit, connection, self._resolve))

    async def retire(self, targets: Iterable[Target]) -> None:
        """Certificate files of changed targets are read again."""
        changed = {target.connection.cert_path for target in targets if isinstance(target, HttpTarget)} - {None}
        for trust in [trust for trust in self._kept if trust[1] in changed]:
            kept = self._kept.pop(trust)
            kept.retired, kept.calls = True, kept.calls + 1
            await kept.release()

    async def aclose(self) -> None:
        for kept in self._kept.values():
            await kept.client.aclose()
        self._kept.clear()


def create(surroundings: Surroundings) -> HttpExecutor:
    return HttpExecutor(surroundings)


def _egress(permit: Permit, connection: HttpConnection, resolve: Resolve) -> Egress:
    """The target's own host is open, loopback and private addresses too: whoever wrote the target meant it. A cloud's
    metadata service is not, unless it is written as an address."""
    own = urlsplit(connection.base_url).hostname or ""
    hosts = permit.target.constraints.hosts
    return Egress(permit, resolve, own=is_own, hosts=("*", own) if hosts is None else hosts)


def _client(context: ssl.SSLContext) -> httpx.AsyncClient:
    """Without the environment's proxies and netrc, without cookies: nothing goes from one target to another."""
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        transport=JudgedTransport(context, _LIMITS),
        trust_env=False,
        follow_redirects=False,
        cookies=no_cookies,
        timeout=_TIMEOUT,
        headers={"User-Agent": AGENT, "Accept-Encoding": "identity"},
    )


def _context(verify: bool, cert_path: str | None) -> ssl.SSLContext:
    try:
        context = trusted() if verify and cert_path is None else ssl.create_default_context(cafile=cert_path)
    except (OSError, ssl.SSLError) as error:
        raise NotConfigured(f"cert_path {cert_path!r} holds no readable CA certificates: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class HttpApi:
    """The Http and the Probe port of one target."""

    def __init__(self, target: HttpTarget, client: httpx.AsyncClient, egress: Egress) -> None:
        self._target, self._client, self._egress = target, client, egress
        self._base = target.connection.base_url
        self._authority = urlsplit(self._base).netloc

    @property
    def health_path(self) -> str:
        return self._target.connection.health_path

    async def request(self, method: str, path: str) -> HttpAnswer:
        url, started = self._base + below_base(path), time.perf_counter()
        for _ in range(REDIRECTS + 1):
            answer = await self._once(method, url, started)
            onward = self._onward(url, answer) if method in ("GET", "HEAD") else None
            if onward is None:
                return answer
            url = onward
        raise ServerFailed(f"{self._authority} redirects in a circle", retryable=False)

    async def probe(self) -> Mapping[str, str]:
        answer = await self.request("GET", self.health_path)
        if answer.status in (401, 403, 407):
            raise AuthRefused(
                f"{self._authority} answered {answer.status} to {self.health_path}",
                hint="Look at connection.auth of the target.",
            )
        if answer.status >= 500:
            raise ServerFailed(f"{self._authority} answered {answer.status} to {self.health_path}")
        server = answer.headers.get("server", "")[:100]
        return {"status": str(answer.status)} | ({"server": server} if server else {})

    def _onward(self, url: str, answer: HttpAnswer) -> str | None:
        """Where a redirect leads, when that is on the target's own origin: credentials go nowhere else."""
        location = answer.headers.get("location")
        if answer.status not in (301, 302, 303, 307, 308) or not location:
            return None
        onward = urljoin(url, location)
        return onward if _origin(onward) == _origin(self._base) else None

    async def _once(self, method: str, url: str, started: float) -> HttpAnswer:
        request = self._client.build_request(method, url, headers=_credentials(self._target.connection))
        limit = self._target.constraints.max_output_bytes
        way_out.set(self._egress)
        try:
            response = await self._sent(request)
            try:
                content = Content(response.headers.get("content-encoding", ""), limit)
                await content.read(response.aiter_raw())
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except httpx.HTTPError as error:
            raise self._failure(error) from error
        except httpx.InvalidURL as error:
            raise InvalidArguments(f"{self._authority}: the path can't be sent") from error
        return HttpAnswer(
            status=response.status_code,
            headers=dict(response.headers),
            body=bytes(content.body),
            elapsed=time.perf_counter() - started,
            truncated=content.cut,
            received=content.received,
            version=response.http_version,
        )

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        """The answer's head. A read is sent again once: the server may have closed a kept connection just before."""
        try:
            return await self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if request.method not in ("GET", "HEAD"):
                raise
            return await self._client.send(request, stream=True)

    def _failure(self, error: httpx.HTTPError) -> TargetError:
        """In our words only: httpx may quote headers, which hold credentials."""
        peer = self._authority
        if isinstance(error, httpx.TimeoutException):
            step = "accept a connection" if isinstance(error, httpx.ConnectTimeout) else "answer"
            return DeadlineExceeded(f"{peer} did not {step} in time", hint="It may be down or overloaded.")
        if isinstance(error, httpx.ConnectError):  # the connection stands: it is the TLS handshake that failed
            found = broken(error, peer)
            return found if isinstance(found, TlsFailed) else ConnectionLost(f"{peer} closed the connection")
        if isinstance(error, httpx.LocalProtocolError):
            return NotConfigured("the credentials of the target can't be sent as a header: a line break in them?")
        if isinstance(error, httpx.ProtocolError) and not _HUNG_UP.search(str(error)):
            return UnreadableOutput(
                f"{peer} answered something that is not HTTP", hint="Look at the target's base_url."
            )
        return ConnectionLost(f"{peer} closed the connection")


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def below_base(path: str) -> str:
    """A path as it may be put behind a base URL: nothing that another reader could take for a way out of it."""
    plain = unquote(unquote(path.partition("?")[0]))
    wrong = not path.startswith("/") or plain.startswith("//") or not re.fullmatch(r"[!-~]+", path) or "#" in path
    if wrong or "\\" in plain or any(part in (".", "..") for part in plain.split("/")):
        raise InvalidArguments("the path must start with one '/' and stay below the target's base_url")
    return path


def _credentials(connection: HttpConnection) -> list[tuple[bytes, bytes]]:
    match connection.auth:
        case BearerAuth(token=token):
            return [(b"Authorization", b"Bearer " + token.get_secret_value().encode())]
        case BasicAuth(username=username, password=password):
            pair = f"{username}:{password.get_secret_value()}".encode()
            return [(b"Authorization", b"Basic " + b64encode(pair))]
        case HeaderAuth(name=name, value=value):
            return [(name.encode(), value.get_secret_value().encode())]
        case _:
            return []
