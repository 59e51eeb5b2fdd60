"""The operator's way: a socket that says who is there, a command line that shows all, and a gateway that is killed."""

import asyncio
import io
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from systemmanager.approvals import console, operators
from systemmanager.approvals.desk import Desk
from systemmanager.approvals.store import ApprovalStore
from systemmanager.errors import ApprovalRefused, GatewayError, NotFound, Unreachable
from systemmanager.request import Principal
from systemmanager.server.app import operator
from tests.serving import Running, Served, serving
from tests.support import fake_gateway, principal, records, run, target, tcp_server
from tests.test_cli import at_a_terminal, systemmanager

TARGETS = """\
version: "1.0"
targets:
  local: {id: "local", executor: "local", capabilities: ["admin"], constraints: {hosts: ["127.0.0.1"]}}
"""


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    gateway = fake_gateway(folder, lambda permit, name: None, target("a", "docker"))
    gateway.desk = made = Desk(ApprovalStore(folder / "approvals.sqlite"), gateway.journal)
    async with operators.listening(made, folder):
        yield made


def sockets(folder: Path) -> list[Path]:
    return list(folder.glob("*.sock"))


def ask(folder: Path, **question: Any) -> dict[str, Any]:
    return operators.ask(folder, question)


def test_an_answer_names_the_person_whom_the_kernel_names(tmp_path: Path) -> None:
    async def work() -> None:
        async with desk(tmp_path) as made:
            id = made.store.ask("claude", "tool", {"targets": ["a"]}, "d" * 64)[0].id
            words = {"do": "approve", "id": id, "digest": "d" * 64, "person": "root2"}
            answered = (await asyncio.to_thread(operators.ask, tmp_path, words))["approval"]
            wanted = {"person": f"local:{os.getuid()}", "approved": True, "channel": "operator"}
            assert answered["answers"] == [wanted] and answered["state"] == "approved"
            (path,) = sockets(tmp_path)
            assert path.stat().st_mode & 0o777 == 0o600

    run(work())
    assert sockets(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"do": "approve"}, ApprovalRefused),
        ({"do": "approve", "digest": "e" * 64}, ApprovalRefused),
        ({"do": "show", "id": "nothing"}, NotFound),
        ({"do": "redeem"}, ApprovalRefused),
        ({}, ApprovalRefused),
    ],
    ids=["no digest", "another digest", "unknown id", "unknown word", "no word"],
)
def test_other_questions_are_refused(tmp_path: Path, words: dict[str, Any], kind: type[GatewayError]) -> None:
    async def work() -> None:
        async with desk(tmp_path) as made:
            id = made.store.ask("claude", "tool", {"targets": ["a"]}, "d" * 64)[0].id
            with pytest.raises(kind):
                await asyncio.to_thread(operators.ask, tmp_path, {"id": id, **words})
            assert made.store.get(id).answers == ()

    run(work())


@pytest.mark.parametrize("line", [b"", b"\n", b"[1]\n", b"nonsense\n", b"[" * 4000 + b"\n", b"x" * 100_000 + b"\n"])
def test_nonsense_on_the_socket_harms_nothing(tmp_path: Path, line: bytes) -> None:
    def talk(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(10)
            with operators._short(path) as short:
                made.connect(short)
            try:
                made.sendall(line)
                made.shutdown(socket.SHUT_WR)
                while made.recv(4096):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass

    async def work() -> None:
        async with desk(tmp_path):
            (path,) = sockets(tmp_path)
            await asyncio.to_thread(talk, path)
            assert await asyncio.to_thread(operators.ask, tmp_path, {"do": "list"}) == {"approvals": []}

    run(work())


async def _own(made: Desk, folder: Path, who: Principal, **constraints: Any) -> dict[str, Any]:
    """What the socket answers to this user's yes, to a call of `who`."""
    one = target("a", "docker", constraints=constraints)
    gateway = fake_gateway(folder, lambda permit, name: None, one, desk=made)
    reply = await gateway.call(who, "pull_docker_image", {"target": "a", "image_name": "nginx"})
    error = reply.as_dict()["results"][0]["error"]
    assert ("another terminal" in error["hint"]) == (who.kind == "operator" and not constraints)
    id = error["details"]["approval_id"]
    shown = await asyncio.to_thread(operators.ask, folder, {"do": "show", "id": id})
    words = {"do": "approve", "id": id, "digest": shown["approval"]["digest"]}
    return await asyncio.to_thread(operators.ask, folder, words)


@pytest.mark.parametrize(
    ("who", "constraints"),
    [(operator(), {"dual_approval": True}), (principal("admin", subject=operator().subject), {})],
    ids=["one of two people", "a token with the operator's name"],
)
def test_nobody_approves_their_own_request(tmp_path: Path, who: Principal, constraints: dict[str, Any]) -> None:
    async def work() -> None:
        async with desk(tmp_path) as made:
            with pytest.raises(ApprovalRefused, match="can't answer"):
                await _own(made, tmp_path, who, **constraints)

    run(work())
    assert "approval answer refused" in [one["tool"] for one in records(tmp_path)]


def test_the_local_operator_answers_for_their_client_on_stdio(tmp_path: Path) -> None:
    """A client has no way to the socket; and who is alone on a machine has nobody else to ask."""

    async def work() -> None:
        async with desk(tmp_path) as made:
            assert (await _own(made, tmp_path, operator()))["approval"]["state"] == "approved"
            id = made.store.ask(operator().subject, "tool", {"kind": "operator"}, "d" * 64)[0].id
            with pytest.raises(ApprovalRefused, match="can't answer"):
                await made.answer(id, operator().subject, True, "webhook")

    run(work())


def test_a_socket_of_a_killed_gateway_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("name" * 20)
    folder.mkdir(parents=True)
    left = socket.socket(socket.AF_UNIX)
    with operators._short(folder / "approvals-1.sock") as short:
        left.bind(short)
    left.close()
    with pytest.raises(Unreachable, match="no gateway runs"):
        ask(folder, do="list")

    async def work() -> None:
        async with desk(folder):
            assert len(sockets(folder)) == 1
            assert await asyncio.to_thread(operators.ask, folder, {"do": "list"}) == {"approvals": []}

    run(work())


HOSTILE = "start \x1b[2J\x9b31m\u202e\u200b\U000e0041 [red]bold[/red] \r" + "x" * 5000 + " end"


def test_what_is_shown_is_whole_and_can_move_no_cursor(tmp_path: Path) -> None:
    screen = io.StringIO()
    out = Console(file=screen, force_terminal=True, width=40, highlight=False, emoji=False, color_system=None)
    question = {
        "tool": "t", "subject": f"eve{HOSTILE}", "kind": "token", "risk": "critical", "policy": "p", "registry": "r",
        "targets": [f"target-{number}" for number in range(500)], "arguments": {"url": HOSTILE},
        "plan": {"plan_id": "p", "groups": [{"targets": ["a"], "changes": [{"what": "w", "before": HOSTILE}]}]},
    }  # fmt: skip
    asked = {"id": "1", "state": "pending", "needed": 2, "expires": time.time() + 60, "digest": "d", "answers": []}
    console._print(out, {**asked, "question": question})
    shown = screen.getvalue()
    assert shown.isascii() and not set(shown) & set(map(chr, [*range(10), *range(11, 32), 127]))
    assert shown.count("x" * 5000 + " end") == 3 and shown.count("[red]bold[/red]") == 3
    assert all(f"target-{number}" in shown for number in range(500)) and "2 different people" in shown


# --- With the real process --------------------------------------------------------------------------------------------


def state(gateway: Running) -> Mapping[str, str]:
    return MappingProxyType({"SYSTEMMANAGER_STATE_DIR": str(gateway.state / "systemmanager")})


def call(gateway: Running, url: str, **more: Any) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        async with Served(gateway.url).client("auto", "network:diag") as client:
            arguments = {"url": url, **more}
            done = await client.call_tool("http_request_test", arguments, raise_on_error=False)
            result: dict[str, Any] = done.structured_content["results"][0]
            return result

    return run(work())


class Site:
    """A canary: counts the requests that reach it, and answers them or never does."""

    def __init__(self, *, hangs: bool) -> None:
        self.hits, self.hangs = 0, hangs

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.hits += 1
        if self.hangs:
            await reader.read()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()


def configured(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "targets.yaml").write_text(TARGETS)
    return {"SYSTEMMANAGER_TARGETS_CONFIG": str(tmp_path / "targets.yaml")}


def test_an_operator_approves_at_the_command_line(tmp_path: Path) -> None:
    site = Site(hangs=False)

    async def work() -> None:
        async with tcp_server(site.serve) as port:
            await asyncio.to_thread(_approves, tmp_path, f"http://127.0.0.1:{port}/")

    run(work())
    assert site.hits == 1


def _approves(tmp_path: Path, url: str) -> None:
    with serving(tmp_path, configured(tmp_path)) as gateway:
        here = state(gateway)
        id = call(gateway, url)["error"]["details"]["approval_id"]
        (listed,) = systemmanager(tmp_path, "approvals", "list", settings=here).stdout.splitlines()
        assert json.loads(listed)["id"] == id and json.loads(listed)["question"]["arguments"]["url"] == url
        refused = systemmanager(tmp_path, "approvals", "approve", id, settings=here, check=1)
        assert "--yes" in refused.stderr
        status, screen = at_a_terminal(tmp_path, ("approvals", "approve", id), "n", **here)
        assert status == 0 and url.removeprefix("http://") in screen and "high" in screen and "tester" in screen
        assert call(gateway, url, approval_id=id)["error"]["code"] == "approval_required"
        status, screen = at_a_terminal(tmp_path, ("approvals", "approve", id), "y", **here)
        assert status == 0 and "approved" in screen
        assert call(gateway, url, approval_id=id)["ok"]
        assert call(gateway, url, approval_id=id)["error"]["code"] == "approval_refused"
        assert systemmanager(tmp_path, "approvals", "list", settings=here).stdout == ""
        kept = json.loads(systemmanager(tmp_path, "approvals", "list", "--all", settings=here).stdout)
        assert kept["state"] == "used"
    gone = systemmanager(tmp_path, "approvals", "list", settings=here, check=1)
    assert "no gateway runs" in gone.stderr and "SYSTEMMANAGER_STATE_DIR" in gone.stderr


def test_a_gateway_killed_in_the_effect_never_does_it_again(tmp_path: Path) -> None:
    site = Site(hangs=True)

    async def work() -> None:
        async with tcp_server(site.serve) as port:
            await asyncio.to_thread(_killed, tmp_path, f"http://127.0.0.1:{port}/", site)

    run(work())
    assert site.hits == 1


def _killed(tmp_path: Path, url: str, site: Site) -> None:
    with serving(tmp_path, configured(tmp_path)) as gateway:
        id = call(gateway, url)["error"]["details"]["approval_id"]
        systemmanager(tmp_path, "approvals", "approve", id, "--yes", settings=state(gateway))

        async def begin() -> None:
            async with Served(gateway.url).client("auto", "network:diag") as client:
                arguments = {"url": url, "approval_id": id}
                done = asyncio.create_task(client.call_tool("http_request_test", arguments, raise_on_error=False))
                deadline = time.monotonic() + 20
                while not site.hits and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)
                gateway.process.kill()
                await asyncio.wait([done])
                done.exception()

        try:
            run(begin())
        except (Exception, ExceptionGroup) as error:  # the client's own way to say that the server is gone
            assert site.hits == 1, error
    with serving(tmp_path, configured(tmp_path)) as gateway:
        again = call(gateway, url, approval_id=id)["error"]
        assert again["code"] == "approval_refused" and "used" in again["message"]
