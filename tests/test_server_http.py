"""MCP over HTTP: who gets in, and what is bounded."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from systemmanager.server import http as http_module
from systemmanager.server.http import MAX_BODY
from tests.serving import ACCEPT, BEARER, INITIALIZE, Served, http, served, token
from tests.support import real_gateway, run, target

# --- who gets in -----------------------------------------------------------------------------------------------------

HEADERS: dict[str, tuple[dict[str, str], int]] = {
    "own address": ({}, 200),
    "localhost": ({"Host": "localhost:8080"}, 200),
    "IPv6 loopback": ({"Host": "[::1]:8080"}, 200),
    "evil host": ({"Host": "evil.example"}, 421),
    "evil host that begins like ours": ({"Host": "127.0.0.1.evil.example"}, 421),
    "evil host with our port": ({"Host": "evil.example:8080"}, 421),
    "empty host": ({"Host": ""}, 421),
    "evil origin": ({"Origin": "http://evil.example"}, 403),
    "null origin": ({"Origin": "null"}, 403),
    "own origin": ({"Origin": "http://127.0.0.1:{port}"}, 200),
    "forwarded host is not read": ({"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "10.0.0.1"}, 200),
}


@pytest.mark.parametrize("name", HEADERS)
def test_host_and_origin_are_checked(name: str, tmp_path: Path) -> None:
    headers, status = HEADERS[name]

    async def work() -> int:
        async with http(tmp_path) as (there, client):
            port = there.origin.rpartition(":")[2]
            given = {key: value.format(port=port) for key, value in headers.items()}
            return (await client.post("/mcp", json=INITIALIZE, headers=ACCEPT | BEARER | given)).status_code

    assert run(work()) == status


ROUTES: dict[str, tuple[str, str, int]] = {
    "liveness": ("GET", "/healthz", 200),
    "liveness takes no POST": ("POST", "/healthz", 405),
    "root": ("GET", "/", 404),
    "docs": ("GET", "/docs", 404),
    "metrics": ("GET", "/metrics", 404),
    "the old SSE transport": ("GET", "/sse", 404),
    "messages": ("POST", "/messages/", 404),
    "MCP below": ("POST", "/mcp/tools", 404),
    "MCP twice": ("POST", "//mcp", 404),
    "MCP with dots": ("POST", "/x/%2e%2e/mcp", 404),
    "MCP in capitals": ("POST", "/MCP", 404),
    "resource metadata of nobody": ("GET", "/.well-known/oauth-protected-resource/mcp", 404),
    "MCP, GET": ("GET", "/mcp", 401),
    "MCP, DELETE": ("DELETE", "/mcp", 401),
    "MCP, PUT": ("PUT", "/mcp", 401),
    "MCP, OPTIONS": ("OPTIONS", "/mcp", 401),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTES)
def test_without_a_token_only_liveness_answers(name: str, tmp_path: Path) -> None:
    method, path, status = ROUTES[name]

    async def work() -> httpx.Response:
        async with http(tmp_path) as (_, client):
            return await client.request(method, path, headers={"Origin": ""})

    answer = run(work())
    assert answer.status_code in {status, 405} if method in ("PUT", "OPTIONS") else answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers and "server" not in answer.headers
    assert "Traceback" not in answer.text


def test_liveness_says_degraded_and_no_more(tmp_path: Path) -> None:
    async def work() -> Any:
        async with real_gateway(tmp_path, target("local")) as gateway, served(gateway) as there:
            gateway.degraded["registry"] = "targets.yaml holds a secret"
            async with httpx.AsyncClient() as client:
                return (await client.get(there.origin + "/healthz")).json()

    assert run(work()) == {"status": "degraded"}


def test_a_session_serves_each_request_with_that_requests_rights(tmp_path: Path) -> None:
    """Another token of the same subject, with fewer rights, on the session that the stronger one opened."""

    async def work() -> list[Any]:
        async with http(tmp_path) as (_, client):
            opened = await client.post("/mcp", json=INITIALIZE, headers=ACCEPT | BEARER)
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
            call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "get_system_status"}}
            answers = []
            for bearing in (token("network:read"), token("admin"), token("admin", subject="another")):
                headers = ACCEPT | session | {"Authorization": f"Bearer {bearing}"}
                answers.append(await client.post("/mcp", json=call, headers=headers))
            return answers

    weak, strong, foreign = run(work())
    assert (weak.status_code, strong.status_code, foreign.status_code) == (200, 200, 404)
    assert "missing_scope" in weak.text or '"isError":true' in weak.text
    assert '"isError":true' not in strong.text


# --- what is bounded -------------------------------------------------------------------------------------------------


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536 + 1):
        yield b" " * 65536


@pytest.mark.parametrize("how", ["declared", "chunked", "declared a lie", "declared nonsense"])
def test_a_large_body_is_refused(how: str, tmp_path: Path) -> None:
    async def work() -> int:
        async with http(tmp_path) as (there, client):
            if how.startswith("declared "):
                return await _by_hand(there, {"declared a lie": "99999999999", "declared nonsense": "0x10"}[how])
            body = b" " * (MAX_BODY + 1) if how == "declared" else chunks(MAX_BODY + 1)
            return (await client.post("/mcp", content=body, headers=ACCEPT | BEARER)).status_code

    assert run(work()) in ({413} if how != "declared nonsense" else {400, 413})


async def _by_hand(there: Served, length: str) -> int:
    """A request whose Content-Length is not that of its body."""
    host, _, port = there.origin.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{name}: {value}" for name, value in {**ACCEPT, **BEARER, "Content-Length": length}.items()]
    writer.write("\r\n".join([f"POST /mcp HTTP/1.1\r\nHost: {host}", *lines, "", "{}"]).encode())
    status = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return int(status.split()[1])


BODIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "a batch": json.dumps([INITIALIZE, INITIALIZE]).encode(),
    "null": b"null",
    "deep": b"[" * 20_000 + b"]" * 20_000,
    "bad UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
    "huge number": b'{"jsonrpc":"2.0","id":' + b"9" * 10_000 + b',"method":"ping"}',
    "unknown method": b'{"jsonrpc":"2.0","id":1,"method":"tools/run"}',
    "arguments a list": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":[]}}',
    "name an object": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":{}}}',
}


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28", "1999-01-01", "x" * 1000])
@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_without_a_word_of_the_inside(name: str, version: str, tmp_path: Path) -> None:
    async def work() -> httpx.Response:
        async with http(tmp_path) as (_, client):
            headers = ACCEPT | BEARER | {"MCP-Protocol-Version": version}
            return await client.post("/mcp", content=BODIES[name], headers=headers)

    answer = run(work())
    assert 400 <= answer.status_code < 500
    assert not any(word in answer.text for word in ("Traceback", "pydantic", ".py", "Exception", "site-packages"))


@pytest.mark.parametrize("encoding", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
def test_a_body_that_drips_is_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(http_module, "BODY_WITHIN", 0.3)
    head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER['Authorization']}\r\n{encoding}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in ACCEPT.items())
    piece = b"{" if "Length" in encoding else b"1\r\n{\r\n"

    async def work() -> bytes:
        async with http(tmp_path) as (there, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(there.origin.rpartition(":")[2]))
            writer.write(f"{head}\r\n".encode())
            answer, deadline = asyncio.ensure_future(reader.readline()), asyncio.get_running_loop().time() + 10
            while not answer.done() and asyncio.get_running_loop().time() < deadline:
                writer.write(piece)
                await asyncio.wait((answer,), timeout=0.05)
            writer.transport.abort()
            return await answer

    assert b" 408 " in run(work())
