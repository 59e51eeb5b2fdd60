"""A thousand planted secrets never come out, and what only looks like one stays readable."""

import asyncio
import io
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from systemmanager import logs, secretshapes
from systemmanager.errors import CommandFailed, EngineRefused
from systemmanager.ports import Tail
from systemmanager.redaction import Redactor
from tests.canaries import COUNT, FORMS, Canary, canaries, innocent
from tests.support import OPERATOR, fake_gateway, real_gateway, run, target, tcp_server

ALL = tuple(canaries())
FORM_NAMES = (
    "env",
    "label",
    "argv",
    "file",
    "header",
    "url",
    "pem",
    "jwt",
    "cloud",
    "connection",
    "document",
    "encoded",
)


def leaked(text: str, planted: tuple[Canary, ...] = ALL) -> list[str]:
    return [one.text for one in planted if any(part in text for part in one.parts)]


def test_there_are_a_thousand_canaries_in_twelve_forms_and_the_same_each_time() -> None:
    assert len(ALL) == COUNT == 1000 and {one.form for one in ALL} == set(FORM_NAMES) and len(FORMS) == 12
    assert tuple(canaries()) == ALL


@pytest.mark.parametrize("form", FORM_NAMES)
def test_no_canary_is_left_in_a_text(form: str) -> None:
    redactor = Redactor()
    for one in (one for one in ALL if one.form == form):
        for around in ("{}", "line before\n{}\nline after", "x {} y", "\t{}"):
            cleaned = redactor.text(around.format(one.text) if "{" not in one.text else around.replace("{}", one.text))
            assert not leaked(cleaned, (one,))


def test_new_canaries_of_other_seeds_are_found_too() -> None:
    redactor = Redactor()
    more = tuple(canaries(seed=int(time.time()), count=1200))
    missed = [one.text for one in more if leaked(redactor.text(f"a\n{one.text}\nb"), (one,))]
    assert not missed


def test_what_stands_around_a_secret_stays() -> None:
    redactor = Redactor()
    for one in ALL:
        cleaned = redactor.text(f"line before\n\n{one.text}\n\nline after")
        assert cleaned.startswith("line before\n") and cleaned.endswith("\nline after"), one.text


def test_innocent_lines_stay_as_they_are() -> None:
    redactor, lines = Redactor(), list(innocent())
    assert len(set(lines)) >= 200
    assert [line for line in lines if redactor.text(line) != line] == []
    assert redactor.text("\n".join(lines)) == "\n".join(lines)


PIECES = (
    *secretshapes._ALL_BEGINNINGS, "mysql ", "password:|\n ", "password", "://a:", "http://a1" + "a" * 24, "define('",
    "\x00", "pass\xad", "cGFzc3dvcmQ", "QUJD", "-----BEGIN PRIVATE KEY-----", "eyJaaaaaa.", "password=\\\n", "secret>",
    'secret" value=', "%3a%2f%2f", "\x1b[1m", " -u a:", "login a ", ":5432:a:b:", "secret: >\n  a\n", "\u202e",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_megabyte_of_hostile_text_takes_less_than_a_second(seed: int) -> None:
    """Each piece over and over, and mixtures; seconds of CPU, as other tests run beside this one."""
    chosen = random.Random(seed)
    texts = [piece * (1_000_000 // len(piece)) for piece in PIECES[seed::4]]
    texts += ["".join(chosen.choices(PIECES, k=120_000))[:1_000_000]]
    for text in texts:
        started = time.process_time()
        Redactor(["a-known-secret"]).text(text)
        assert time.process_time() - started < 1, text[:40]


# --- through the gateway ---------------------------------------------------------------------------------------------


@contextmanager
def gateway_log() -> Iterator[io.StringIO]:
    """Everything that the gateway and its libraries log, down to the lowest level."""
    written = io.StringIO()
    before, root = structlog.get_config(), logging.getLogger()
    stream, level = logging.StreamHandler(written), root.level
    structlog.configure(
        processors=[structlog.processors.format_exc_info, logs.redacted, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(written),
        cache_logger_on_first_use=False,
    )
    logs.quiet_libraries()
    root.addHandler(stream)
    root.setLevel(logging.DEBUG)
    try:
        yield written
    finally:
        root.removeHandler(stream)
        root.setLevel(level)
        structlog.configure(**before)


async def seen_of(gateway: Any, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """All that comes out of some calls: structured answers, texts in both formats."""

    async def approve(requests: Sequence[Any]) -> str:
        return "the test"

    out = []
    for tool, arguments in calls:
        reply = await gateway.call(OPERATOR, tool, arguments, approve=approve)
        out += [json.dumps(reply.as_dict(), ensure_ascii=False), reply.text(), reply.text("toon")]
    return "\n".join(out).replace("\\n", "\n")


def test_files_with_canaries_are_read_without_them(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    calls: list[tuple[str, dict[str, Any]]] = []
    for number in range(0, COUNT, 50):
        path = folder / f"{number}.conf"
        text = "\n\n".join(one.text for one in ALL[number : number + 50])
        path.write_text(f"{text}\n", encoding="utf-8", newline="")
        calls += [
            ("file_operations", {"action": action, "path": str(path), "lines": 1000}) for action in ("read", "tail")
        ]
    there = target("local", constraints={"paths": [str(folder)]})

    async def work() -> str:
        async with real_gateway(tmp_path, there, clock=iter_minutes()) as gateway:
            return await seen_of(gateway, calls)

    with gateway_log() as log:
        seen = run(work())
    assert seen.count("<<untrusted") >= 40 and "[redacted]" in seen
    assert not leaked(seen) and not leaked(log.getvalue()) and not leaked((tmp_path / "audit.jsonl").read_text())


def iter_minutes() -> Any:
    """A clock that goes on by a minute a look, so that the rate rule has no say."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 60
        return now

    return clock


def test_processes_with_canaries_in_argv_and_environment_are_listed_without_them(tmp_path: Path) -> None:
    planted = tuple(one for one in ALL if one.form in ("argv", "env", "url", "jwt", "cloud"))[:60]
    idle = "import time; print(flush=True); time.sleep(600)"
    started = []
    try:
        for begin in range(0, len(planted), 20):
            words = [word for one in planted[begin : begin + 20] for word in one.text.split()]
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", idle, *words], stdout=subprocess.PIPE, env={"CANARY_TOKEN": ALL[0].parts[0]}
                )
            )
        for process in started:
            assert process.stdout is not None and process.stdout.readline()

        async def work() -> str:
            async with real_gateway(tmp_path, target("local")) as gateway:
                given = {"limit": 1000, "sort_by": "memory"}
                return await seen_of(gateway, [("get_top_processes", given)])

        with gateway_log() as log:
            seen = run(work())
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    assert all(f'"pid": {process.pid}' in seen for process in started)
    assert not leaked(seen, planted) and not leaked(log.getvalue(), planted)


def test_http_answers_with_canaries_are_shown_without_them(tmp_path: Path) -> None:
    headers = [one.text for one in ALL if one.form == "header" and one.text.isprintable()][:40]
    bodies = ["\n\n".join(one.text for one in ALL[number : number + 25]) for number in range(0, 250, 25)]
    turn = iter(bodies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = next(turn).encode("utf-8")
        lines = [*headers, f"Content-Length: {len(body)}", "Content-Type: text/plain; charset=utf-8"]
        writer.write(("HTTP/1.1 200 OK\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + body)
        await writer.drain()

    async def work() -> str:
        async with tcp_server(serve) as port, real_gateway(tmp_path, HTTP_TESTER, clock=iter_minutes()) as gateway:
            url = f"http://127.0.0.1:{port}/?token={ALL[0].parts[0]}"
            return await seen_of(gateway, [("http_request_test", {"url": url})] * len(bodies))

    with gateway_log() as log:
        seen = run(work())
    assert seen.count('"status": 200') == len(bodies), seen[:500]
    assert not leaked(seen) and not leaked(log.getvalue()) and not leaked((tmp_path / "audit.jsonl").read_text())


HTTP_TESTER = target("local", constraints={"hosts": ["127.0.0.1"]})


class Engine:
    """An engine whose logs and refusals hold what containers hold: environment, labels, output."""

    def __init__(self, planted: tuple[Canary, ...]) -> None:
        self.text = "\n\n".join(one.text for one in planted)
        self.labels = {f"label-{number}": one.text for number, one in enumerate(planted)}

    async def inspect(self, name: str) -> Mapping[str, Any]:
        if name == "refused":
            raise EngineRefused(self.text, hint=self.text, details={"status": 500})
        if name == "broken":
            raise RuntimeError(self.text)
        if name == "failed":
            raise CommandFailed("docker failed", details={"stderr": self.text})
        state = {"Status": "exited", "Running": False, "ExitCode": 1, "Error": self.text}
        config = {"Env": self.text.split("\n"), "Labels": self.labels}
        return {"Id": "1" * 64, "Name": "/web", "State": state, "Config": config, "RestartCount": 0}

    async def logs(self, name: str, lines: int, *, stamped: bool = False) -> Tail:
        return Tail(self.text)

    async def act(self, action: str, name: str) -> None:
        raise EngineRefused(self.text)


@pytest.mark.parametrize("begin", range(0, COUNT, 250))
def test_logs_errors_and_defects_with_canaries_are_told_without_them(begin: int, tmp_path: Path) -> None:
    planted = ALL[begin : begin + 250]
    engine = Engine(planted)
    gateway = fake_gateway(tmp_path, lambda permit, name: engine, target("d", "docker"), clock=iter_minutes())
    calls = [
        ("manage_container", {"action": action, "name_or_id": name, "target": "d", "lines": 1000})
        for action in ("logs", "start")
        for name in ("web", "refused", "failed", "broken")
    ]
    with gateway_log() as log:
        seen = run(seen_of(gateway, calls))
    assert "internal_error" in seen and "[redacted]" in seen
    assert not leaked(seen, planted) and not leaked((tmp_path / "audit.jsonl").read_text(), planted)
    assert not leaked(log.getvalue().replace("\\n", "\n"), planted)


def test_arguments_with_canaries_reach_no_log_and_no_answer(tmp_path: Path) -> None:
    planted = tuple(one for one in ALL if one.form != "encoded")

    async def work() -> str:
        async with real_gateway(tmp_path, target("local"), clock=iter_minutes()) as gateway:
            calls: list[tuple[str, dict[str, Any]]] = []
            for number in range(0, len(planted), 40):
                text = "\n\n".join(one.text for one in planted[number : number + 40])
                calls += [
                    ("file_operations", {"action": text, "path": "/x"}),
                    ("get_service_status", {"service_name": text}),
                    (text, {}),
                    ("get_system_status", {"target": text, text: text}),
                ]
            return await seen_of(gateway, calls)

    with gateway_log() as log:
        seen = run(work())
    assert not leaked(seen, planted) and not leaked(log.getvalue(), planted)
    assert not leaked((tmp_path / "audit.jsonl").read_text().replace("\\n", "\n"), planted)


def test_no_canary_of_the_gateway_is_in_argv_or_environment_of_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's own environment holds them all, and the registry; what it starts writes down what it was given."""
    programs, seen = tmp_path / "bin", tmp_path / "seen"
    programs.mkdir()
    for name in ("systemctl", "journalctl", "ping", "traceroute", "dig", "apt-get", "dpkg-query", "ss", "ip"):
        recorder = programs / name
        recorder.write_text(
            f"#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >> {seen}\necho {name} >> {seen}\nexit 1\n"
        )
        recorder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    planted = tuple(one for one in ALL if "\0" not in one.text and one.form != "encoded")
    for number, one in enumerate(planted):
        monkeypatch.setenv(f"CANARY_{number}", one.text)
    secrets = frozenset(part for one in planted for part in one.parts)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_service_status", {"service_name": "nginx"}),
        ("manage_service", {"service_name": "nginx", "action": "restart"}),
        ("ping_host", {"host": "127.0.0.1"}),
        ("traceroute", {"host": "127.0.0.1"}),
        ("check_system_updates", {}),
        ("audit_security", {}),
    ]

    async def work() -> None:
        there = target("local", constraints={"sudo_policy": "full"})
        async with real_gateway(tmp_path, there, clock=iter_minutes(), secrets=secrets, root=True) as gateway:
            await seen_of(gateway, calls)

    with gateway_log():
        run(work())
    told = seen.read_text(errors="replace")
    assert all(f"{name}\n" in told for name in ("systemctl", "ping"))
    assert not leaked(told, planted) and "CANARY_" not in told
