"""httpx connections that go to judged addresses only: names are resolved and judged where a connection is made.

A kept connection goes where it was judged; each new one, also behind a redirect, is judged again.
"""

import ssl
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import anyio
import httpcore
import httpx

from systemmanager.errors import DeadlineExceeded, NameNotResolved, Unreachable
from systemmanager.executors.egress import Egress, first_of
from systemmanager.executors.web import causes

way_out: ContextVar[Egress] = ContextVar("way_out")
"""The egress of the call that sends now: httpcore hands nothing of a request to what connects for it."""


class _Judged(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                found = await way_out.get().addresses(host)
        except TimeoutError as error:
            raise NameNotResolved(f"{host!r} was not resolved within {timeout:g} s") from error
        place = f"{host}:{port}"

        async def dial(address: str) -> httpcore.AsyncNetworkStream:
            try:
                return await self._network.connect_tcp(address, port, timeout, socket_options=socket_options)
            except httpcore.ConnectTimeout as error:
                raise DeadlineExceeded(
                    f"{place} did not accept a connection in time",
                    hint="It may be down or overloaded.",
                    details={"reason": "timeout"},
                ) from error
            except httpcore.ConnectError as error:
                raise _not_connected(error, place) from error

        return await first_of(found, dial, lambda stream: stream.aclose())


def _not_connected(error: BaseException, peer: str) -> Unreachable:
    if any(isinstance(one, ConnectionRefusedError) for one in causes(error)):
        hint = "Is the server running, and on this port?"
        return Unreachable(f"{peer} refused the connection", hint=hint, details={"reason": "refused"})
    hint = "It may be down, or a firewall is in between."
    return Unreachable(f"{peer} can't be reached", hint=hint, details={"reason": "failed"})


class JudgedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport, over a pool of our own: it takes no network of ours itself."""

    def __init__(self, context: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Judged(),
        )
