"""The `systemmanager serve` and `stdio` processes: start, stop, reload, and what they say when they can't start."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from tests.serving import ERAS, Era, Served, environment, serving
from tests.support import run

both_eras = pytest.mark.parametrize("era", ERAS)
TARGETS = """
version: "1.0"
targets:
  local:
    id: local
    type: local
    executor: local
    capabilities: [system:read, network:read, network:diag]
    constraints: {hosts: ["127.0.0.0/8"]}
"""
SECOND = """
  second:
    id: second
    type: local
    executor: local
    capabilities: [system:read]
"""


async def status_is_read(url: str, era: Era) -> bool:
    async with Served(url).client(era) as client:
        answer = await client.call_tool("get_system_status")
        return answer.structured_content is not None and answer.structured_content["ok"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_in_both_eras_and_stops_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """Idle it takes 0.3 s; on a loaded machine the log tells that nothing waited for the end of the drain."""
    with serving(tmp_path) as running:
        assert all(run(status_is_read(running.url, era)) for era in ERAS)
        assert httpx.get(running.url.replace("/mcp", "/healthz")).json() == {"status": "ok"}
        begun = time.monotonic()
        running.process.send_signal(number)
        assert running.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 10
        assert not [line for line in running.lines() if line["level"] in ("error", "critical", "warning")]


def test_serve_with_an_idle_client_connected_stops_at_once(tmp_path: Path) -> None:
    """The old era's clients keep a GET stream open."""

    async def work(url: str, process: Any) -> float:
        async with Served(url).client("legacy") as client:
            await client.list_tools()
            await asyncio.sleep(0.2)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(process.wait, 10)
            assert status == 0
            return time.monotonic() - begun

    with serving(tmp_path) as running:
        with contextlib.suppress(Exception):
            assert run(work(running.url, running.process)) < 10
        assert running.process.poll() == 0
        assert not [line for line in running.lines() if line["level"] in ("error", "critical")]


@contextlib.contextmanager
def silent_server() -> Any:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1], listener


@both_eras
def test_a_busy_serve_stops_within_ten_seconds_with_every_outcome_written(era: Era, tmp_path: Path) -> None:
    async def work(url: str, running: Any, listener: socket.socket, port: int) -> float:
        async with Served(url).client(era) as client:
            calling = asyncio.create_task(
                client.call_tool("check_ssl_certificate", {"host": "127.0.0.1", "port": port})
            )
            accepted, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), 10)
            with accepted:
                begun = time.monotonic()
                running.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(running.process.wait, 15)
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            return time.monotonic() - begun

    with silent_server() as (port, listener):
        listener.setblocking(False)
        targets = tmp_path / "targets.yaml"
        targets.write_text(TARGETS)
        with serving(tmp_path, {"SYSTEMMANAGER_TARGETS_CONFIG": str(targets)}) as running:
            took = []
            with contextlib.suppress(Exception):
                took.append(run(work(running.url, running, listener, port)))
            assert running.process.poll() == 0
            assert not took or took[0] < 10
            outcomes = [one for one in running.records() if one["phase"] == "outcome"]
            assert [(one["target"], one["code"]) for one in outcomes] == [("local", "cancelled")]


def test_serve_reloads_on_hangup_and_keeps_the_last_good_registry(tmp_path: Path) -> None:
    async def ids(url: str) -> list[str]:
        async with Served(url).client("auto") as client:
            answer = (await client.call_tool("list_targets")).structured_content
            assert answer is not None
            return [row["id"] for row in answer["results"][0]["data"]["targets"]]

    targets = tmp_path / "targets.yaml"
    targets.write_text(TARGETS)
    with serving(tmp_path, {"SYSTEMMANAGER_TARGETS_CONFIG": str(targets)}) as running:
        assert run(ids(running.url)) == ["local"]
        targets.write_text(TARGETS + SECOND)
        running.process.send_signal(signal.SIGHUP)
        assert running.wait_for("targets.yaml reloaded")["added"] == ["second"]
        assert run(ids(running.url)) == ["local", "second"]
        targets.write_text("version: [")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("targets.yaml is not valid, the last good one stays")
        assert run(ids(running.url)) == ["local", "second"]
        assert httpx.get(running.url.replace("/mcp", "/healthz")).json() == {"status": "degraded"}


def outcome(folder: Path, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "systemmanager", command],
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MCP_PORT": "70000"}, "MCP_PORT"),
        ({"MCP_PORT": "eighty"}, "MCP_PORT"),
        ({"MCP_HOST": "no-such-host.invalid"}, "MCP_HOST"),
        ({"MCP_HOST": "203.0.113.7"}, "MCP_HOST"),
        ({"SYSTEMMANAGER_SHARED_SECRET": "short"}, "SYSTEMMANAGER_SHARED_SECRET"),
        ({"SYSTEMMANAGER_REQUIRE_AUTH": "false"}, "SYSTEMMANAGER_REQUIRE_AUTH"),
        ({"SYSTEMMANAGER_TARGETS_CONFIG": "/no/such/file"}, "SYSTEMMANAGER_TARGETS_CONFIG"),
        ({"SYSTEMMANAGER_SHARD_SECRET": "x"}, "SYSTEMMANAGER_SHARED_SECRET"),
    ],
)
def test_serve_says_why_it_does_not_start(settings: dict[str, str], said: str, tmp_path: Path) -> None:
    done = outcome(tmp_path, "serve", **settings)
    assert done.returncode == 1 and said in done.stderr
    assert "Traceback" not in done.stderr and "short" not in done.stderr.replace("shorter", "")


def test_serve_says_that_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = outcome(tmp_path, "serve", MCP_PORT=str(listener.getsockname()[1]))
    assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr


# --- stdio -----------------------------------------------------------------------------------------------------------


def over_stdio(folder: Path, era: Era, **settings: str) -> Client[Any]:
    command = [sys.executable, "-m", "systemmanager", "stdio"]
    transport = StdioTransport(
        command[0], command[1:], env=environment(folder, **settings), log_file=folder / "stdio.log", keep_alive=False
    )
    return Client(transport, mode=era)


@both_eras
def test_stdio_serves_the_local_operator(era: Era, tmp_path: Path) -> None:
    async def work() -> Any:
        async with over_stdio(tmp_path, era) as client:
            await client.call_tool("get_system_status")
            return (await client.call_tool("explain_access", {"tool": "get_system_status"})).structured_content

    answer = run(work())
    assert answer["results"][0]["data"]["principal"] == f"local:{os.getuid()}"


def start_stdio(folder: Path, **settings: str) -> subprocess.Popen[bytes]:
    with (folder / "stdio.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "systemmanager", "stdio"],
            env=environment(folder, **settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )
    say(
        process,
        "initialize",
        1,
        protocolVersion="2025-11-25",
        capabilities={},
        clientInfo={"name": "t", "version": "1"},
    )
    assert "result" in hear(process)
    say(process, "notifications/initialized")
    return process


def say(process: subprocess.Popen[bytes], method: str, id: int | None = None, **params: Any) -> None:
    assert process.stdin is not None
    message = {"jsonrpc": "2.0", "method": method, "params": params} | ({"id": id} if id is not None else {})
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 20)[0], "nothing was said"
    heard: dict[str, Any] = json.loads(process.stdout.readline())
    return heard


def finish(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    begun = time.monotonic()
    status = process.wait(timeout=15)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    return status, time.monotonic() - begun


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, None], ids=["SIGTERM", "SIGINT", "end of input"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_stdio_stops_in_time(how: signal.Signals | None, busy: bool, tmp_path: Path) -> None:
    with silent_server() as (port, listener), contextlib.ExitStack() as held:
        targets = tmp_path / "targets.yaml"
        targets.write_text(TARGETS)
        process = start_stdio(tmp_path, SYSTEMMANAGER_TARGETS_CONFIG=str(targets))
        if busy:
            say(process, "tools/call", 2, name="check_ssl_certificate", arguments={"host": "127.0.0.1", "port": port})
            listener.settimeout(10)
            held.enter_context(listener.accept()[0])
        if how is None:
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(how)
        status, took = finish(process)
    assert status == 0 and took < 10
    if busy:
        lines = (tmp_path / "state/systemmanager/audit.jsonl").read_text().splitlines()
        ends = [one["code"] for line in lines if (one := json.loads(line))["phase"] == "outcome"]
        assert ends == ["cancelled"]


def test_stdio_reloads_on_hangup_and_tells_the_client(tmp_path: Path) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text(TARGETS)
    process = start_stdio(tmp_path, SYSTEMMANAGER_TARGETS_CONFIG=str(targets))
    targets.write_text(TARGETS + SECOND)
    process.send_signal(signal.SIGHUP)
    kinds = ("tools", "resources", "prompts")
    assert {hear(process)["method"] for _ in kinds} == {f"notifications/{kind}/list_changed" for kind in kinds}
    say(process, "resources/read", 3, uri="systemmanager://targets")
    assert "second" in hear(process)["result"]["contents"][0]["text"]
    assert process.stdin is not None
    process.stdin.close()
    assert finish(process)[0] == 0
