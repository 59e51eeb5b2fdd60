"""Whose connection it is: unix sockets and their users, PROXY headers, and what nobody may claim."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from systemmanager.server.auth import tailnet, throttle
from systemmanager.server.auth.authentication import Authentication
from systemmanager.server.auth.tailnet import Tailnet
from systemmanager.server.peers import SIGNATURE, BadHeader, UnixListener, read_header, with_peers
from tests.serving import ACCEPT, BEARER, INITIALIZE, Served, served, serving
from tests.support import fake_gateway, records, run, target
from tests.tailscaled import ALICE, RUNNER, STRANGER, Tailscaled, tailscaled

LOGIN = {"Tailscale-User-Login": "alice@example.com", "X-Forwarded-For": ALICE}


def header(source: str = ALICE, command: int = 0x21, family: int = 0x11, more: bytes = b"", length: int = -1) -> bytes:
    """A PROXY header, version 2, from an address on port 40000 to 100.64.0.9:8080."""
    kind, own = (socket.AF_INET6, "fd7a::9") if family == 0x21 else (socket.AF_INET, "100.64.0.9")
    body = socket.inet_pton(kind, source) + socket.inet_pton(kind, own) + struct.pack("!HH", 40_000, 8080) + more
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length < 0 else length) + body


# --- The header -------------------------------------------------------------------------------------------------------

GOOD: dict[str, tuple[bytes, tuple[tuple[str, int] | None, bytes]]] = {
    "IPv4": (header() + b"GET", ((ALICE, 40_000), b"GET")),
    "IPv6": (header("fd7a::1", family=0x21), (("fd7a::1", 40_000), b"")),
    "with extensions": (header(more=b"\x03\x00\x04abcd") + b"x", ((ALICE, 40_000), b"x")),
    "the proxy for itself": (header(command=0x20), (None, b"")),
    "the proxy for itself, no addresses": (SIGNATURE + b"\x20\x00\x00\x00y", (None, b"y")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_header_names_the_client_however_it_arrives(name: str) -> None:
    data, wanted = GOOD[name]
    assert read_header(data) == wanted
    whole = len(data) - len(wanted[1])
    assert [read_header(data[:end]) for end in range(whole)] == [None] * whole


BAD: dict[str, bytes] = {
    "HTTP": b"POST /mcp HTTP/1.1\r\n",
    "version 1": b"PROXY TCP4 100.64.0.1 100.64.0.9 40000 8080\r\n",
    "another version": header(command=0x11),
    "another command": header(command=0x22),
    "UDP": header(family=0x12),
    "a unix socket": header(family=0x31),
    "nothing said": header(family=0x00),
    "too short": header(length=11),
    "too long": header(length=60_000),
    "IPv6 said, IPv4 given": SIGNATURE + struct.pack("!BBH", 0x21, 0x21, 12) + b"\x00" * 12,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_names_nobody(name: str) -> None:
    with pytest.raises(BadHeader):
        read_header(BAD[name])


# --- Over real sockets ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def gateway(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Served, Tailscaled]]:
    """A gateway for a tailnet, with a unix socket at `mcp.sock`."""
    one = fake_gateway(tmp_path, lambda *_: None, target("local"))
    settings = {"MCP_SOCKET": str(tmp_path / "mcp.sock"), **settings}
    async with tailscaled(tmp_path) as daemon, tailnet.client(daemon.path) as client:
        modes = Authentication(tailnet=Tailnet(daemon.path, client))
        async with served(one, modes, **settings) as there:
            yield there, daemon
    one.journal.log.close()


async def by_socket(path: Path, **headers: str) -> int:
    """The status of `initialize` over a unix socket, as `tailscale serve` asks."""
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return (await client.post("/mcp", json=INITIALIZE, headers=ACCEPT | headers)).status_code


def test_headers_of_tailscaled_on_the_unix_socket_let_a_person_in(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path):
            assert await by_socket(tmp_path / "mcp.sock", **LOGIN) == 200
            assert await by_socket(tmp_path / "mcp.sock") == 401
            funnel = {**LOGIN, "Tailscale-Funnel-Request": "?1"}
            assert await by_socket(tmp_path / "mcp.sock", **funnel) == 401
        assert not (tmp_path / "mcp.sock").exists()

    run(work())


def test_the_name_that_a_client_asks_by_is_for_the_proxy_on_the_unix_socket_to_check(tmp_path: Path) -> None:
    """`tailscale serve` hands the Host header on: the node's name, which the gateway does not know."""
    name = {"Host": "gateway-101.tail12345.ts.net"}

    async def work() -> None:
        async with gateway(tmp_path) as (there, _):
            path = tmp_path / "mcp.sock"
            assert await by_socket(path, **LOGIN, **name) == 200
            for origin in ("https://evil.example", "http://localhost:6274", "https://proxy.invalid", "null"):
                assert await by_socket(path, **LOGIN, **name, Origin=origin) == 403, "no page of a browser's"
            async with httpx.AsyncClient() as client:
                answer = await client.post(there.url, json=INITIALIZE, headers=ACCEPT | name)
            assert answer.status_code == 421, "over TCP it may be a name that was bound anew"

    run(work())


def test_a_flood_on_the_unix_socket_keeps_out_nobody_whom_tailscaled_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "BY_PROXY", 1)
    monkeypatch.setattr(throttle, "EVERY", 3600.0)

    async def work() -> None:
        async with gateway(tmp_path):
            path = tmp_path / "mcp.sock"
            for number in range(throttle.AT_ONCE + 1):
                last = await by_socket(path, Authorization=f"Bearer {number:032x}")
            assert last == 429 and await by_socket(path) == 429, "whom nobody names"
            assert await by_socket(path, **LOGIN) == 200
            monkeypatch.setattr(Tailnet, "_tailscaled", lambda self: 54_321)
            assert await by_socket(path, **LOGIN) == 429, "by another user than tailscaled's"

    run(work())


def test_the_same_headers_of_anybody_else_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TCP, and on the unix socket from another user than tailscaled's."""

    async def work() -> None:
        async with gateway(tmp_path) as (there, _):
            async with httpx.AsyncClient() as client:
                answer = await client.post(there.url, json=INITIALIZE, headers=ACCEPT | LOGIN)
            assert answer.status_code == 401
            monkeypatch.setattr(Tailnet, "_tailscaled", lambda self: 54_321)
            assert await by_socket(tmp_path / "mcp.sock", **LOGIN) == 401

    run(work())
    peers = [one["arguments"]["peer"] for one in records(tmp_path) if one["tool"] == "credential refused"]
    assert peers[0] == "127.0.0.1" and peers[1].startswith("uid:")


async def by_proxy(there: Served, *parts: bytes) -> bytes:
    """What comes back for bytes that are sent in parts and followed by a request."""
    port = int(there.origin.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    try:
        for part in (*parts[:-1], parts[-1] + request):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


PROXIED: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "a peer of the tailnet": ((header(),), b"HTTP/1.1 4"),
    "in pieces": ((header()[:5], header()[5:20], header()[20:]), b"HTTP/1.1 4"),
    "a stranger": ((header(STRANGER),), b"HTTP/1.1 401"),
    "the proxy for itself": ((header(command=0x20),), b"HTTP/1.1 401"),
    "none": ((b"",), b""),
    "version 1": ((b"PROXY TCP4 100.64.0.1 100.64.0.9 40000 8080\r\n",), b""),
    "two of them": ((header(STRANGER) + header(),), b"HTTP/1.1 400"),
}


@pytest.mark.parametrize("name", PROXIED)
def test_a_proxy_on_loopback_must_say_whom_it_speaks_for(name: str, tmp_path: Path) -> None:
    parts, begins = PROXIED[name]

    async def work() -> bytes:
        async with gateway(tmp_path, MCP_PROXY_PROTOCOL=True) as (there, _):
            return await by_proxy(there, *parts)

    answer = run(work())
    assert answer.startswith(begins) and (begins or not answer)
    if begins == b"HTTP/1.1 4":
        assert b" 401 " not in answer.split(b"\r\n")[0], "the peer was let in; the empty body is what was wrong"


class Bare:
    """What a connection is made of, without HTTP: who is there, and what came."""

    def connection_made(self, transport: Any) -> None:
        self.client, self.came = transport, b""

    def data_received(self, data: bytes) -> None:
        self.came += data


class Peer(tuple[str, int]):
    """A transport that is no more than its peer."""

    def get_extra_info(self, name: str) -> None:
        return None


@pytest.mark.parametrize("own", ["127.0.0.1", "::1", "192.0.2.7", "10.0.0.7", "2001:db8::7"])
def test_a_proxy_that_is_not_on_loopback_speaks_for_nobody(own: str) -> None:
    base: Any = Bare
    made: Any = with_peers(base, proxied=True)
    one = made()
    one.connection_made(Peer((own, 4000)))
    one.data_received(header() + b"GET")
    known = ((ALICE, 40_000), b"GET") if own in ("127.0.0.1", "::1") else ((own, 4000), header() + b"GET")
    assert (one.client, one.came) == known


def test_a_proxy_header_counts_only_where_it_is_switched_on(tmp_path: Path) -> None:
    async def work() -> bytes:
        async with gateway(tmp_path) as (there, daemon):
            answer = await by_proxy(there, header())
            assert daemon.asked == []
            return answer

    assert run(work()).startswith(b"HTTP/1.1 400")


def test_tokens_are_accepted_on_the_unix_socket_too(tmp_path: Path) -> None:
    async def work() -> None:
        one = fake_gateway(tmp_path, lambda *_: None, target("local"))
        async with served(one, MCP_SOCKET=str(tmp_path / "mcp.sock")):
            assert await by_socket(tmp_path / "mcp.sock", **BEARER) == 200
            assert await by_socket(tmp_path / "mcp.sock", **LOGIN) == 401
        one.journal.log.close()

    run(work())


def test_a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mcp.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    listener = UnixListener(path)
    listener.socket.listen()
    with pytest.raises(OSError, match="in use"):
        UnixListener(path)
    assert path.is_socket() and path.stat().st_mode & 0o007 == 0
    listener.close()
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        UnixListener(path)


def test_the_running_gateway_listens_on_its_socket_and_takes_it_away(tmp_path: Path) -> None:
    path = tmp_path / "mcp.sock"
    settings = {"MCP_SOCKET": str(path), "SYSTEMMANAGER_AUTH_MODE": "token,tailscale"}
    with serving(tmp_path, {**settings, "SYSTEMMANAGER_TAILSCALE_SOCKET": str(tmp_path / "none.sock")}) as one:
        assert run(by_socket(path, **BEARER)) == 200
        assert run(by_socket(path, **LOGIN)) == 401
        one.process.terminate()
        assert one.process.wait(20) == 0
    assert not path.exists()


def test_one_member_of_the_tailnet_throttles_no_other_behind_tailscaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tailscaled brings them all, and says in a header of its own from which node each one comes."""
    monkeypatch.setattr(throttle, "EVERY", 3600.0)
    bad = {"Authorization": f"Bearer {'f' * 32}"}

    async def work() -> None:
        async with gateway(tmp_path):
            path = tmp_path / "mcp.sock"
            for _ in range(throttle.AT_ONCE):
                assert await by_socket(path, **bad, **LOGIN) == 401
            assert await by_socket(path, **bad, **LOGIN) == 429
            assert await by_socket(path, **bad, **{**LOGIN, "X-Forwarded-For": RUNNER}) == 401, "another node's"
            assert await by_socket(path, **LOGIN) == 200, "whom tailscaled names is heard"
            monkeypatch.setattr(Tailnet, "_tailscaled", lambda self: 54_321)
            for number in range(throttle.AT_ONCE * throttle.BY_PROXY + 1):
                last = await by_socket(path, **bad, **{"X-Forwarded-For": f"100.64.1.{number}"})
            assert last == 429, "nobody but tailscaled may say whose attempts they are"

    run(work())
