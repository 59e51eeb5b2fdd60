"""The approval webhook over real HTTP: which answers count, and that nothing else does."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from systemmanager import settings
from systemmanager.approvals.answers import MOST_BYTES
from systemmanager.approvals.webhook import SIGNATURE, TIMESTAMP, WINDOW, Webhook
from systemmanager.errors import ConfigError
from systemmanager.policy.demands import Approvals
from systemmanager.server.auth import throttle
from tests.fakes import codes
from tests.serving import SECRET, served
from tests.support import records, run, tcp_server
from tests.test_approvals_desk import Scene, error

Respond = Callable[[dict[str, Any]], bytes]


def response(body: Any, status: str = "200 OK", kind: str = "application/json", extra: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n{extra}\r\n"
    return head.encode() + content


def yes(asked: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    said = {"approved": True, "digest": asked["digest"], "approver": "ann@example.com", **changes}
    return {name: value for name, value in said.items() if value is not None}


@dataclass
class Receiver:
    """The webhook's other end: answers with bytes, or never when there are none."""

    respond: Respond
    asked: list[dict[str, Any]] = field(default_factory=list)
    signed: list[bool] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        stamped = f"{fields[TIMESTAMP.lower()]}.".encode() + body
        wanted = hmac.new(SECRET.encode(), stamped, hashlib.sha256).hexdigest()
        self.signed.append(fields[SIGNATURE.lower()] == f"v1={wanted}")
        self.asked.append(json.loads(body))
        said = self.respond(self.asked[-1])
        if not said:
            await reader.read()
        writer.write(said)
        await writer.drain()


def calls(folder: Path, respond: Respond, *, times: int = 1, needed: int = 1) -> tuple[Scene, Receiver, dict[str, Any]]:
    """One call through a gateway whose webhook answers so, made some times; the last answer."""
    scene, receiver = Scene(folder), Receiver(respond)

    async def work() -> dict[str, Any]:
        async with tcp_server(receiver.serve) as port:
            scene.desk.webhook = Webhook(f"http://127.0.0.1:{port}/approve", SECRET, "http://gateway", within=0.5)
            for _ in range(times):
                reply = await scene.call()
            return reply

    return scene, receiver, run(work())


def test_a_yes_lets_the_call_through_at_once(tmp_path: Path) -> None:
    scene, receiver, reply = calls(tmp_path, lambda asked: response(yes(asked)))
    assert codes(reply) == {"a": "ok"} and scene.engine.pulled == 1 and receiver.signed == [True]
    (asked,) = receiver.asked
    assert asked["question"]["arguments"] == {"image_name": "nginx", "tag": "latest"}
    assert asked["callback"] == f"http://gateway/approvals/{asked['id']}"
    assert asked["expires"] == scene.now + Approvals().lifetime and asked["question"]["subject"] == "claude"
    told = [one for one in records(tmp_path) if one["phase"] in ("intent", "event")]
    assert [one["tool"] for one in told] == ["approval ask", "approval yes", "approval use", "pull_docker_image"]
    assert told[-1]["approved_by"] == "ann@example.com" and told[1]["arguments"]["channel"] == "webhook"


def test_a_no_is_a_no(tmp_path: Path) -> None:
    scene, receiver, reply = calls(tmp_path, lambda asked: response(yes(asked, approved=False)), times=2)
    assert error(reply)["code"] == "approval_refused" and "said no" in error(reply)["message"]
    assert scene.engine.pulled == 0 and len(receiver.asked) == 1


HOSTILE: dict[str, Respond] = {
    "server error": lambda asked: response(yes(asked), "500 Internal Server Error"),
    "redirect": lambda asked: response(yes(asked), "302 Found", extra="Location: http://127.0.0.1:1/\r\n"),
    "created": lambda asked: response(yes(asked), "201 Created"),
    "not JSON by type": lambda asked: response(yes(asked), kind="text/html"),
    "not JSON": lambda asked: response(b"approved"),
    "empty": lambda asked: response(b""),
    "a text": lambda asked: response(yes(asked, approved="true")),
    "a number": lambda asked: response(yes(asked, approved=1)),
    "approved is not there": lambda asked: response(yes(asked, approved=None)),
    "in a list": lambda asked: response([yes(asked)]),
    "wrong digest": lambda asked: response(yes(asked, digest="0" * 64)),
    "no digest": lambda asked: response(yes(asked, digest=None)),
    "digest with a capital": lambda asked: response(yes(asked, digest=asked["digest"].upper() + " ")),
    "no approver": lambda asked: response(yes(asked, approver=None)),
    "empty approver": lambda asked: response(yes(asked, approver=" ")),
    "approver is a list": lambda asked: response(yes(asked, approver=["ann"])),
    "approver with an escape": lambda asked: response(yes(asked, approver="ann\x1b[2J")),
    "approver is a confusable": lambda asked: response(yes(asked, approver="аnn")),
    "approver is a local operator": lambda asked: response(yes(asked, approver="local:0")),
    "approver is who asks": lambda asked: response(yes(asked, approver="Claude")),
    "twice": lambda asked: response(json.dumps(yes(asked, approved=False))[:-1].encode() + b', "approved": true}'),
    "one megabyte": lambda asked: response(yes(asked, padding="x" * 1024 * 1024)),
    "zipped": lambda asked: response(b"\x1f\x8b" + b"0" * 100, extra="Content-Encoding: gzip\r\n"),
    "deep": lambda asked: response(b"[" * 10_000),
    "never": lambda asked: b"",
    "cut off": lambda asked: response(yes(asked))[:-5],
    "no HTTP": lambda asked: b"yes\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_else_is_a_yes(tmp_path: Path, name: str) -> None:
    scene, receiver, reply = calls(tmp_path, HOSTILE[name])
    assert error(reply)["code"] == "approval_required" and scene.engine.pulled == 0 and receiver.asked
    state = scene.desk.store.get(error(reply)["details"]["approval_id"])
    assert state.state == "pending" and state.answers == ()


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_not_followed_to_where_there_would_be_a_yes(tmp_path: Path, status: str) -> None:
    answers = iter([response({}, status, extra="Location: /yes\r\n")])
    receiver = Receiver(lambda asked: next(answers, response(yes(asked))))
    scene = Scene(tmp_path)

    async def work() -> dict[str, Any]:
        async with tcp_server(receiver.serve) as port:
            scene.desk.webhook = Webhook(f"http://127.0.0.1:{port}/approve", SECRET, within=5)
            return await scene.call()

    assert error(run(work()))["code"] == "approval_required"
    assert len(receiver.asked) == 1 and scene.engine.pulled == 0


def test_a_yes_that_comes_byte_by_byte_comes_too_late(tmp_path: Path) -> None:
    """No single step takes long: the bound is for the whole exchange."""
    scene = Scene(tmp_path)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        asked = json.loads(await reader.readexactly(length))
        for byte in response(yes(asked)):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    async def work() -> dict[str, Any]:
        async with tcp_server(drip) as port:
            scene.desk.webhook = Webhook(f"http://127.0.0.1:{port}/approve", SECRET, within=0.5)
            return await scene.call()

    assert error(run(work()))["code"] == "approval_required" and scene.engine.pulled == 0


def test_a_webhook_that_is_not_there_leaves_it_to_the_operator(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.desk.webhook = Webhook("http://127.0.0.1:1/", SECRET)
    assert error(run(scene.call()))["code"] == "approval_required"
    assert "approval webhook" in [one["tool"] for one in records(tmp_path)]


@pytest.mark.parametrize(("status", "times"), [("202 Accepted", 1), ("500 Oops", 3)])
def test_it_is_asked_again_only_while_it_has_not_taken_it(tmp_path: Path, status: str, times: int) -> None:
    _, receiver, reply = calls(tmp_path, lambda asked: response({}, status), times=3)
    assert len(receiver.asked) == times and error(reply)["code"] == "approval_required"


# --- The answer that comes later --------------------------------------------------------------------------------------


@dataclass
class Callback:
    """One signed answer, and what is wrong with it."""

    status: int
    changes: dict[str, Any] = field(default_factory=dict)
    secret: str = SECRET
    later: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    path: str = ""
    content: bytes | None = None


CALLBACKS: dict[str, Callback] = {
    "good": Callback(200),
    "a no": Callback(200, {"approved": False}),
    "other secret": Callback(401, secret=SECRET[::-1]),
    "too old": Callback(401, later=-WINDOW - 5),
    "of the future": Callback(401, later=WINDOW + 5),
    "no signature": Callback(401, headers={SIGNATURE: ""}),
    "other scheme": Callback(401, headers={SIGNATURE: "v0=" + "0" * 64}),
    "not ASCII": Callback(401, headers={SIGNATURE: "v1=\u00e9"}),
    "no timestamp": Callback(401, headers={TIMESTAMP: ""}),
    "odd timestamp": Callback(401, headers={TIMESTAMP: "1e9"}),
    "huge timestamp": Callback(401, headers={TIMESTAMP: "9" * 4000}),
    "a text": Callback(400, {"approved": "true"}),
    "other digest": Callback(409, {"digest": "0" * 64}),
    "no digest": Callback(400, {"digest": None}),
    "no approver": Callback(400, {"approver": None}),
    "who asks": Callback(409, {"approver": "claude@example.com"}),
    "other id in the body": Callback(400, {"id": "0" * 16}),
    "no id in the body": Callback(400, {"id": None}),
    "unknown id": Callback(404, {"id": "0" * 16}, path="/approvals/" + "0" * 16),
    "too large": Callback(413, {"padding": "x" * MOST_BYTES}),
    "read": Callback(405, method="GET"),
    "our own request sent back": Callback(400, content=b"{}"),
    "another path": Callback(404, path="/approvals/x"),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_later_answer_counts_when_it_is_signed_and_for_this_request(tmp_path: Path, name: str) -> None:
    case, scene = CALLBACKS[name], Scene(tmp_path)
    scene.now = time.time()
    signer = Webhook("http://127.0.0.1:1/", case.secret, clock=lambda: time.time() + case.later)

    async def work() -> None:
        scene.desk.webhook = Webhook("http://127.0.0.1:1/", SECRET)
        id = await scene.asked()
        asked = scene.desk.store.get(id)
        body = json.dumps(yes({"digest": asked.digest}, **{"id": id, **case.changes})).encode()
        body = body if case.content is None else case.content
        headers = httpx.Headers({**signer.signed(body), **case.headers}, encoding="utf-8")
        async with served(scene.gateway) as there, httpx.AsyncClient(base_url=there.origin) as client:
            path = case.path or f"/approvals/{id}"
            for again in range(2):
                answered = await client.request(case.method, path, content=body, headers=headers)
                assert answered.status_code == (409 if again and case.status == 200 else case.status), answered.text
        good = case.status == 200 and case.changes.get("approved", True)
        scene.desk.webhook = None
        reply = await scene.call(approval_id=id)
        assert scene.engine.pulled == (1 if good else 0) and (codes(reply) == {"a": "ok"}) == good

    run(work())


def test_a_flood_of_bad_answers_is_429_and_bad_tokens_beside_it_keep_no_answer_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "BY_PROXY", 1)
    monkeypatch.setattr(throttle, "EVERY", 3600.0)
    scene = Scene(tmp_path)
    scene.now = time.time()
    scene.desk.webhook = signer = Webhook("http://127.0.0.1:1/", SECRET)

    async def work() -> None:
        id = await scene.asked()
        path, digest = f"/approvals/{id}", scene.desk.store.get(id).digest
        body = json.dumps(yes({"digest": digest}, id=id)).encode()
        async with served(scene.gateway) as there, httpx.AsyncClient(base_url=there.origin) as client:
            tokens = [(await client.post("/mcp", headers={"Authorization": "Bearer x"})).status_code for _ in range(25)]
            assert tokens[-1] == 429
            assert (await client.post(path, content=body, headers=signer.signed(body))).status_code == 200
            bad = [b"{}", b"x" * (MOST_BYTES + 1)] * (throttle.AT_ONCE // 2)
            said = [(await client.post(path, content=one)).status_code for one in bad]
            assert set(said) == {401, 413}
            answer = await client.post(path, content=body, headers=signer.signed(body))
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 3000

    run(work())


def test_a_body_that_does_not_say_how_large_it_is_is_bounded(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.desk.webhook = Webhook("http://127.0.0.1:1/", SECRET)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(MOST_BYTES // 1024 + 1):
            yield b"x" * 1024

    async def work() -> int:
        async with served(scene.gateway) as there, httpx.AsyncClient(base_url=there.origin) as client:
            return (await client.post(f"/approvals/{'0' * 16}", content=parts())).status_code

    assert run(work()) == 413


def test_a_body_that_is_too_large_by_its_own_word_is_not_read(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.desk.webhook = Webhook("http://127.0.0.1:1/", SECRET)

    async def work() -> bytes:
        async with served(scene.gateway) as there:
            port = int(there.origin.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /approvals/{'0' * 16} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MOST_BYTES + 1}\r\n\r\n"
            writer.write(head.encode())
            line = await asyncio.wait_for(reader.readline(), 3)
            writer.close()
            await writer.wait_closed()
            return line

    assert b" 413 " in run(work())


def test_without_a_webhook_there_is_no_way_in(tmp_path: Path) -> None:
    async def work() -> int:
        scene = Scene(tmp_path)
        async with served(scene.gateway) as there, httpx.AsyncClient(base_url=there.origin) as client:
            return (await client.post(f"/approvals/{'0' * 16}", content=b"{}")).status_code

    assert run(work()) == 404


@pytest.mark.parametrize(
    ("url", "secret", "says"),
    [
        ("http://hook.example/", SECRET, "https://"),
        ("https://hook.example/", None, "WEBHOOK_SECRET: is missing"),
        (None, SECRET, "WEBHOOK_URL: is missing"),
        ("https://hook.example/", "short", "shorter than 32 bytes"),
    ],
)
def test_half_a_webhook_stops_the_start(url: str | None, secret: str | None, says: str) -> None:
    names = {"SYSTEMMANAGER_APPROVAL_WEBHOOK_URL": url, "SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET": secret}
    with pytest.raises(ConfigError) as caught:
        settings.read({name: value for name, value in names.items() if value is not None})
    assert says in str(caught.value)
