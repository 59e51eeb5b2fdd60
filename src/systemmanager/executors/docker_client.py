"""Requests to one Docker Engine through the SDK's low-level client.

The SDK blocks, so each request has a thread. A thread can't be cancelled: its timeouts end it, an abandoned body is
shut down under it, it is a daemon so that the gateway's stop never waits for it, and each engine has a bound of its
own on threads, so that an engine that hangs is in nobody's way but its own.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from systemmanager.errors import EngineUnavailable, OutputTooLarge, TargetError, UnreadableOutput
from systemmanager.executors import docker_errors

T = TypeVar("T")

CONNECT = 5.0
"""Seconds to connect, TLS included."""

LEAST = 15.0
"""Seconds that a request has even when the call's deadline is over: what tidies up must get through."""

LARGEST = 32 * 1024 * 1024
"""Most bytes of one JSON answer."""

MOST_THREADS = 32
NEWEST_API = (1, 47)
"""The newest version of the Engine's API that this code knows; an older engine is asked in its own."""

NOT_MODIFIED = 304
"""What the engine answers when a container is started or stopped already."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: the authority that signed the engine's certificate, and the gateway's own certificate and key."""

    ca: str
    cert: str
    key: str

    def stamp(self) -> tuple[int, ...]:
        """Changes when a file is renewed."""
        return tuple(Path(path).stat().st_mtime_ns for path in (self.ca, self.cert, self.key))


@dataclass(slots=True)
class Exchange:
    """One request on its way, as the caller and its thread both see it."""

    deadline: float
    abandoned: bool = False
    response: Any = None

    @property
    def left(self) -> float:
        """Seconds that the next step may take: it fails by itself a little before the call's deadline."""
        left = self.deadline - time.monotonic()
        return left * 0.9 if left > 0 else LEAST

    def check(self) -> None:
        if self.abandoned:
            raise EngineUnavailable("nobody waits for this answer any more")

    def abandon(self) -> None:
        """Nobody waits any more: end what is still being read, so that the engine ends it as well."""
        self.abandoned = True
        if self.response is not None:
            with suppress(ValueError, RuntimeError, OSError):
                self.response.raw.shutdown()


class _Carry(Generic[T]):
    """Carries what a thread's work gives, or how it fails, to the loop that waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def give(self, result: T) -> None:
        self._send(lambda: self.future.set_result(result))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if error is not None:
            self._send(lambda: self.future.set_exception(error))
        return True

    def _send(self, settle: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


@dataclass(eq=False)
class Client:
    """One engine's kept connections. Belongs to no event loop; made without I/O, it connects when it is first used."""

    base_url: str
    tls: Tls | None = None
    _api: Any = None
    _threads: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _failed: tuple[float, str] = (0.0, "")
    _counting: threading.Lock = field(default_factory=threading.Lock)

    async def ask(
        self, exchange: Exchange, method: str, path: str, *parts: str, query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """One request and its JSON answer; None where the engine answers nothing."""
        content, _ = await self.content(exchange, method, path, *parts, query=query, body=body)
        if not content.strip():
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise UnreadableOutput(f"{self.base_url} does not answer as a Docker Engine does") from error

    async def content(
        self, exchange: Exchange, method: str, path: str, *parts: str, query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None, limit: int = LARGEST, partial: bool = False,
    ) -> tuple[bytes, bool]:  # fmt: skip
        """One request and its body, and whether the body was cut at `limit`; without `partial`, that is an error."""

        def work() -> tuple[bytes, bool]:
            with self._request(exchange, method, path, parts, query, body) as response:
                return self._body(exchange, response, limit, partial)

        return await self._in_thread(exchange, work)

    async def messages(
        self, exchange: Exchange, path: str, query: Mapping[str, Any], registry_of: str
    ) -> list[dict[str, Any]]:
        """POST what answers with a stream of JSON lines (a pull); answers its last lines that are no progress."""

        def work() -> list[dict[str, Any]]:
            headers = docker_errors.credentials(self._ready(exchange), registry_of)
            kept: list[dict[str, Any]] = []
            with self._request(exchange, "POST", path, (), query, None, headers) as response:
                with docker_errors.translated(self.base_url, changing=True):
                    for line in response.iter_lines(chunk_size=4096):
                        message = json.loads(line) if line.strip() and not exchange.abandoned else {}
                        if message and "progressDetail" not in message:
                            kept = [*kept[-63:], message]
            return kept

        return await self._in_thread(exchange, work)

    async def _in_thread(self, exchange: Exchange, work: Callable[[], T]) -> T:
        if self._threads >= MOST_THREADS:
            raise EngineUnavailable(
                f"{self.base_url} hangs: {self._threads} requests wait for its answer", hint="Look at the engine."
            )
        with self._counting:
            self._threads += 1
        carry = _Carry[T]()

        def main() -> None:
            with carry:
                try:
                    carry.give(work())
                finally:
                    self._thread_ended()

        threading.Thread(target=main, name=f"docker {self.base_url}", daemon=True).start()
        try:
            return await carry.future
        except asyncio.CancelledError:
            exchange.abandon()
            raise

    def _thread_ended(self) -> None:
        with self._counting:
            self._threads -= 1

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _ready(self, exchange: Exchange) -> Any:
        """The SDK's client, with the version negotiated; made once. Who waits for another's attempt shares its fate."""
        began = time.monotonic()
        with self._lock:
            exchange.check()
            when, why = self._failed
            if self._api is None and when > began:
                raise EngineUnavailable(why)
            if self._api is None:
                self._api = self._negotiated(exchange)
            return self._api

    def _negotiated(self, exchange: Exchange) -> Any:
        api = docker_errors.made(self.base_url, self.tls)
        try:
            with docker_errors.translated(self.base_url):
                answer = api.get(f"{api.base_url}/version", timeout=(CONNECT, min(10.0, exchange.left)))
            api._version = _version(answer, self.base_url)
        except TargetError as error:
            self._failed = time.monotonic(), error.message
            api.close()
            raise
        return api

    def _request(
        self, exchange: Exchange, method: str, path: str, parts: tuple[str, ...], query: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None, again: bool = True,
    ) -> Any:  # fmt: skip
        """The response to one request, its body unread; an error of the engine is raised."""
        api = self._ready(exchange)
        changing = method != "GET"
        try:
            with docker_errors.translated(self.base_url, changing):
                response = api.request(
                    method, api._url(path, *parts), params=query, json=body, headers=headers, stream=True,
                    timeout=(CONNECT, exchange.left), allow_redirects=False,
                )  # fmt: skip
        except EngineUnavailable as error:
            if changing or not again or not docker_errors.went_stale(error):
                raise
            return self._request(exchange, method, path, parts, query, body, headers, again=False)
        exchange.response = response
        if exchange.abandoned:
            response.close()
        exchange.check()
        if response.status_code >= 300 and response.status_code != NOT_MODIFIED:
            with response:
                said = self._body(exchange, response, 64 * 1024, True)[0].decode("utf-8", "replace")
            if docker_errors.version_refused(response.status_code, said):
                self.close()  # another engine answers now: negotiate again with the next request
            raise docker_errors.refused(self.base_url, response.status_code, said)
        return response

    def _body(self, exchange: Exchange, response: Any, limit: int, partial: bool) -> tuple[bytes, bool]:
        chunks: list[bytes] = []
        size = 0
        with docker_errors.translated(self.base_url):
            for chunk in response.iter_content(64 * 1024):
                chunks.append(chunk)
                size += len(chunk)
                exchange.check()
                if time.monotonic() > exchange.deadline + LEAST:
                    raise EngineUnavailable(f"{self.base_url} did not finish its answer in time")
                if size > limit and partial:
                    return b"".join(chunks)[:limit], True
                if size > limit:
                    raise OutputTooLarge(f"{self.base_url} answered more than {limit} bytes")
        return b"".join(chunks), False

    def close(self) -> None:
        """Let go of the connections that are idle; requests on their way keep theirs. Usable afterwards."""
        api, self._api = self._api, None
        if api is not None:
            api.close()


def _version(answer: Any, where: str) -> str:
    try:
        theirs = str(answer.json()["ApiVersion"])
        major, minor = theirs.split(".")
        return theirs if (int(major), int(minor)) <= NEWEST_API else "{}.{}".format(*NEWEST_API)
    except (ValueError, KeyError, TypeError) as error:
        raise (
            docker_errors.refused(where, answer.status_code, answer.text[:500])
            if not answer.ok
            else (UnreadableOutput(f"{where} does not answer as a Docker Engine does"))
        ) from error


_kept: dict[tuple[Any, ...], Client] = {}
MOST_KEPT = 1024


def client_for(base_url: str, tls: Tls | None) -> Client:
    """The kept client of an engine. Renewed certificates get a new one."""
    key = (base_url, tls, tls.stamp() if tls else ())
    client = _kept.pop(key, None) or Client(base_url, tls)
    _kept[key] = client  # as the newest
    while len(_kept) > MOST_KEPT:
        _kept.pop(next(iter(_kept))).close()
    return client


def forget(base_urls: frozenset[str] | None = None) -> None:
    """Close what is kept for these engines; for all of them without `base_urls`."""
    for key in [key for key in _kept if base_urls is None or key[0] in base_urls]:
        _kept.pop(key).close()
