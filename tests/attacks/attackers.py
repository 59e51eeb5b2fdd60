"""How each kind of attack is carried out. An attacker answers what it was told: codes, HTTP statuses, every byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from systemmanager.errors import ConfigError
from systemmanager.executors import local_network
from systemmanager.gateway import Gateway
from systemmanager.server.app import running
from systemmanager.settings import read
from tests.attacks.arena import Arena
from tests.attacks.catalogue import Case, filled
from tests.attacks.forging import forged
from tests.attacks.watch import Watch, watching
from tests.serving import ACCEPT, INITIALIZE, Served, served, token

ERA = "2026-07-28"
_META = "io.modelcontextprotocol/"


@dataclass
class Told:
    """What an attacker got: `codes` of what it asked for, in order, and all that was `said` to it."""

    codes: list[str | int] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    watch: Watch | None = None
    texts: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    decisions: int = 0
    """How many decisions its steps have brought about, where it counts them itself."""
    hidden: list[str] = field(default_factory=list)
    """What it presented and must not see again: tokens."""


Attacker = Callable[[Case, Arena], Coroutine[Any, Any, Told]]


def watch_of(arena: Arena, *ports: int) -> Watch:
    return Watch(arena.state, {*ports})


@asynccontextmanager
async def standing(arena: Arena, **fields: Any) -> AsyncIterator[tuple[Gateway, Served, httpx.AsyncClient, Watch]]:
    """The gateway behind HTTP, a client of it, and the watch over this process."""
    async with arena.gateway(**fields) as gateway, served(gateway) as there:
        async with httpx.AsyncClient(base_url=there.origin, verify=False, timeout=20, trust_env=False) as client:
            yield gateway, there, client, watch_of(arena, int(there.origin.rpartition(":")[2]))


# --- calls of tools ---------------------------------------------------------------------------------------------------


def bearing(given: Mapping[str, Any]) -> dict[str, str]:
    """The headers of whom a case calls as: `as: {scopes, targets, subject}`; default all scopes on all targets."""
    who = dict(given.get("as", {}))
    made = token(*who.get("scopes", ["admin"]), subject=who.get("subject", "mallory"), targets=who.get("targets"))
    return {"Authorization": f"Bearer {made}"}


def message(method: str, params: Mapping[str, Any], name: str | None = None) -> tuple[dict[str, str], bytes]:
    """Headers and body of one request of the 2026-07-28 protocol."""
    headers = {**ACCEPT, "MCP-Protocol-Version": ERA, "Mcp-Method": method}
    headers |= {} if name is None else {"Mcp-Name": name}
    about = {"protocolVersion": ERA, "clientInfo": {"name": "mallory", "version": "1"}, "clientCapabilities": {}}
    meta = {f"{_META}{key}": value for key, value in about.items()}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    return headers, json.dumps(body).encode()


def codes_of(answer: httpx.Response) -> list[str | int]:
    """The gateway's codes in an answer: of the call, else of each target; else the HTTP status, `ok` for 200."""
    for line in answer.content.splitlines():
        text = line.removeprefix(b"data:").strip()
        body = json.loads(text) if text.startswith(b"{") else {}
        data = body["error"].get("data") if isinstance(body.get("error"), dict) else None
        if isinstance(data, dict) and "code" in data:
            return [data["code"]]
        if "error" in body and answer.status_code == 200:
            return [body["error"]["code"]]
        if "result" in body:
            reply = body["result"].get("structuredContent", {})
            if "error" in reply:
                return [reply["error"]["code"]]
            return [one["error"]["code"] if "error" in one else "ok" for one in reply.get("results", [])] or ["ok"]
    return [answer.status_code if answer.status_code != 200 else "nothing"]


def _took(told: Told, answer: httpx.Response) -> httpx.Response:
    told.said += [answer.content, *(name + b": " + value for name, value in answer.headers.raw)]
    return answer


async def call(case: Case, arena: Arena) -> Told:
    """A call of a tool over HTTP: after `first` others, `times` in a row, or `at_once`; the last answers count."""
    given = case.given
    for name, body in given.get("programs", {}).items():
        arena.program(name, filled(body, arena.names))
    for name, text in given.get("files", {}).items():
        content = filled(text, arena.names)
        (arena.root / name).write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
    if "log" in given:
        arena.spoil_log(given["log"])
    told = Told()
    async with standing(arena, **given.get("gateway", {})) as (_, _, client, watch):
        with resolving(given.get("names"), watch), watching(watch):
            for one in [*given.get("first", ()), *[given] * given.get("times", 1)]:
                told.codes = await _called(told, client, one, given, arena)
            crowd = [_called(told, client, given, given, arena) for _ in range(given.get("at_once", 1) - 1)]
            told.codes += [code for codes in await asyncio.gather(*crowd) for code in codes]
    told.watch = watch
    return told


async def _called(
    told: Told, client: httpx.AsyncClient, one: Mapping[str, Any], given: Mapping[str, Any], arena: Arena
) -> list[str | int]:
    arguments = filled(one.get("arguments", {}), arena.names)
    headers, body = message("tools/call", {"name": one["tool"], "arguments": arguments}, one["tool"])
    answer = _took(told, await client.post("/mcp", content=body, headers=headers | bearing(given)))
    told.texts.append(answer.text)
    return codes_of(answer)


class resolving:  # noqa: N801  a context manager, read like a verb
    """Have names resolve as a case says, each next time to its next list of addresses."""

    def __init__(self, names: Mapping[str, list[list[str]]] | None, watch: Watch) -> None:
        self._names, self._watch = {name: list(lists) for name, lists in (names or {}).items()}, watch

    def __enter__(self) -> None:
        self._before = local_network.resolved

        async def resolved(host: str) -> list[str]:
            lists = self._names.get(host)
            if lists is None:
                return await self._before(host)
            return lists.pop(0) if len(lists) > 1 else lists[0]

        local_network.resolved = resolved

    def __exit__(self, *_: object) -> None:
        local_network.resolved = self._before


# --- requests ---------------------------------------------------------------------------------------------------------


async def http(case: Case, arena: Arena) -> Told:
    """One HTTP request, with `token` forged as the case says."""
    given, told = case.given, Told()
    async with standing(arena) as (_, there, client, watch):
        names = {**arena.names, "port": there.origin.rpartition(":")[2]}
        names["token"] = forged(filled(given.get("token", {"good": True}), names))
        rows = given.get("headers", [["Authorization", "Bearer <token>"]])
        bearer = [(name, value.encode("utf-8")) for name, value in filled(rows, names)]
        headers, body = message(given.get("method", "tools/list"), given.get("params", {}))
        own = {name: value for name, value in headers.items() if name not in given.get("without", [])}
        if "body" in given:
            body = filled(given["body"], names).encode("utf-8", "surrogatepass")
        pairs = [(name.encode(), value.encode()) for name, value in own.items()]
        pairs += [(name.encode("utf-8"), value) for name, value in bearer]
        told.hidden += [names["token"]] if len(names["token"]) > 20 else []
        with watching(watch):
            verb, path = given.get("verb", "POST"), filled(given.get("path", "/mcp"), names)
            for _ in range(given.get("times", 1)):
                answer = _took(told, await client.request(verb, path, content=body, headers=pairs))
        told.codes = codes_of(answer)
    told.watch = watch
    return told


async def rpc(case: Case, arena: Arena) -> Told:
    """A raw body from somebody who is let in."""
    given, told = case.given, Told()
    async with standing(arena) as (_, _, client, watch):
        who = bearing(given)
        name = filled(given.get("name"), arena.names)
        headers: dict[str, str] = {**message(given.get("method", "tools/call"), {}, name)[0], **who}
        if given.get("era") == "old":
            opened = await client.post("/mcp", json=INITIALIZE, headers=ACCEPT | who)
            headers = {**ACCEPT, **who, "Mcp-Session-Id": opened.headers["mcp-session-id"]}
        headers |= given.get("headers", {})
        if "params" in given:
            body = message(given["method"], filled(given["params"], arena.names), name)[1]
        else:
            body = filled(given["body"], arena.names).encode("utf-8", "surrogatepass")
        with watching(watch):
            answer = _took(told, await client.post("/mcp", content=body, headers=headers))
        told.codes = codes_of(answer)
        told.texts.append(answer.text)
    told.watch = watch
    return told


async def wire(case: Case, arena: Arena) -> Told:
    """Bytes on a connection of one's own; the status of each answer that comes back."""
    told = Told()
    async with standing(arena) as (_, there, _, watch):
        host, _, port = there.origin.removeprefix("http://").partition(":")
        names = {**arena.names, "token": token("admin", subject="mallory"), "host": f"{host}:{port}"}
        reader, writer = await asyncio.open_connection(host, int(port))
        with watching(watch):
            writer.write(filled(case.given["bytes"], names).encode("latin-1"))
            if case.given.get("hangs_up", True) and writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(15):
                content = await reader.read(1_000_000)
                while more := await reader.read(1_000_000):
                    content += more
        writer.transport.abort()
        await asyncio.sleep(0)
    told.said.append(content)
    told.codes = [int(line.split()[1]) for line in content.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")] or [
        "closed"
    ]
    told.watch = watch
    return told


# --- configuration ----------------------------------------------------------------------------------------------------

GOOD_TARGETS = 'version: "1.0"\ntargets:\n  a:\n    id: a\n    executor: local\n    capabilities: [system:read]\n'
GOOD_POLICY = 'version: "1.0"\ngrants:\n  - subjects: [ann@example.com]\n    scopes: [readonly]\n'


def environment(arena: Arena, **more: str) -> dict[str, str]:
    return {
        "SYSTEMMANAGER_STATE_DIR": str(arena.state),
        "SYSTEMMANAGER_TARGETS_CONFIG": str(arena.folder / "targets.yaml"),
        "SYSTEMMANAGER_POLICY_CONFIG": str(arena.folder / "policy.yaml"),
        **more,
    }


async def config(case: Case, arena: Arena) -> Told:
    """A hostile `targets` or `policy` file at a reload: it is refused, and the last good one stays."""
    given, told = case.given, Told()
    files = {"targets": arena.folder / "targets.yaml", "policy": arena.folder / "policy.yaml"}
    files["targets"].write_text(GOOD_TARGETS)
    files["policy"].write_text(GOOD_POLICY)
    attacked = files[given["file"]]
    async with running(read(environment(arena))) as gateway:
        before = gateway.gateway.registry.version, gateway.gateway.policy.version
        text = filled(given["text"], arena.names)
        encoding = given.get("encoding", "utf-8")
        attacked.write_bytes(text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "strict"))
        with watching(watch := watch_of(arena)):
            await gateway.reload()
        kept = (gateway.gateway.registry.version, gateway.gateway.policy.version) == before
        told.codes = ["config_invalid" if kept and given["file"] in gateway.gateway.degraded else "taken"]
        told.said = [why.encode() for why in gateway.gateway.degraded.values()]
    told.watch = watch
    return told


async def settings(case: Case, arena: Arena) -> Told:
    """An environment that the gateway must not start in."""
    told = Told()
    for name, text in case.given.get("files", {}).items():
        (Path(arena.folder) / name).write_text(filled(text, arena.names))
    with watching(watch := watch_of(arena)):
        try:
            async with running(read(environment(arena) | filled(case.given["environment"], arena.names))):
                told.codes = ["started"]
        except ConfigError as error:
            told.codes, told.said = [error.code], [str(error).encode()]
    told.watch = watch
    return told


ATTACKERS: dict[str, Attacker] = {
    "call": call, "http": http, "rpc": rpc, "wire": wire, "config": config, "settings": settings,
}  # fmt: skip
