"""What an audit log that can't be written means for calls, and in which order things happen."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from systemmanager.gateway import Gateway
from systemmanager.ports import Output
from systemmanager.request import Permit
from tests.support import OPERATOR, fake_gateway, principal, records, run, target


class Machine:
    """A Shell and Facts that notes how much of the audit log stood there when it was asked to act."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.seen: list[list[str]] = []

    def port(self, permit: Permit, name: str) -> "Machine":
        return self

    async def run(self, *argv: str, **options: Any) -> Output:
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        self.seen.append([json.loads(line)["phase"] for line in lines])
        return Output(argv, 0, "LoadState=loaded\nActiveState=active\nId=nginx.service\n", "")

    async def counters(self) -> list[Any]:
        self.seen.append([])
        return []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "audit.jsonl")


def gateway(tmp_path: Path, machine: Machine) -> Gateway:
    return fake_gateway(tmp_path, machine.port, target("web-01", constraints={"sudo_policy": "full"}), root=True)


def call(gateway: Gateway, tool: str, arguments: dict[str, Any], who: Any = OPERATOR) -> dict[str, Any]:
    with capture_logs():
        return run(gateway.call(who, tool, {"target": "web-01", **arguments})).as_dict()


RESTART = ("manage_service", {"action": "restart", "service_name": "nginx"})
READ: tuple[str, dict[str, Any]] = ("get_network_io_counters", {})


def test_the_intent_is_written_before_the_effect(tmp_path: Path, machine: Machine) -> None:
    reply = call(gateway(tmp_path, machine), *RESTART)
    assert machine.seen and all(phases == ["intent"] for phases in machine.seen)
    found = records(tmp_path)
    assert [one["phase"] for one in found] == ["intent", "outcome"]
    assert {one["call_id"] for one in found} == {reply["call_id"]}
    chain = {name: found[0].pop(name) for name in ("n", "after", "hash")}
    assert chain["n"] == 1 and chain["hash"] == found[1]["after"]
    assert found[0] | {"time": ""} == {
        "time": "", "phase": "intent", "call_id": reply["call_id"], "tool": "manage_service", "subject": "local:0",
        "kind": "operator", "target": "web-01", "risk": "high", "registry": "built-in", "policy": "built-in",
        "arguments": {"target": "web-01", "action": "restart", "service_name": "nginx"},
    }  # fmt: skip


def _directory(log: Path) -> None:
    log.mkdir()


@pytest.mark.parametrize("break_it", [_directory, lambda log: log.symlink_to("/dev/full")], ids=["directory", "link"])
def test_without_a_log_only_low_risk_reads_go_on(tmp_path: Path, machine: Machine, break_it: Any) -> None:
    log = tmp_path / "audit.jsonl"
    break_it(log)
    one = gateway(tmp_path, machine)
    assert call(one, *READ)["ok"] and len(machine.seen) == 1
    reply = call(one, *RESTART)
    assert reply["error"]["code"] == "audit_unavailable" and reply["error"]["retryable"]
    assert len(machine.seen) == 1, "nothing ran"
    assert "audit" in one.degraded
    health = run(one.call(OPERATOR, "health_check", {})).as_dict()["results"][0]["data"]
    assert health["status"] == "degraded" and "audit" in health["problems"]
    # Space again, or the path repaired: the next call finds out by itself.
    log.rmdir() if log.is_dir() else log.unlink()
    assert "error" not in call(one, *RESTART) and "audit" not in one.degraded and len(machine.seen) > 1
    assert [one["phase"] for one in records(tmp_path)] == ["intent", "outcome"]


def test_it_is_refused_within_a_second_and_resumes_by_itself_within_two(tmp_path: Path, machine: Machine) -> None:
    """Nobody calls meanwhile: the gateway looks for itself whether it can write again."""
    log, kept, one = tmp_path / "audit.jsonl", tmp_path / "kept", gateway(tmp_path, machine)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with one.journal.open():
            log.rename(kept)
            log.symlink_to(tmp_path / "elsewhere")
            began = loop.time()
            reply = (await one.call(OPERATOR, RESTART[0], {"target": "web-01", **RESTART[1]})).as_dict()
            assert reply["error"]["code"] == "audit_unavailable" and loop.time() < began + 1
            log.unlink()
            kept.rename(log)
            began = loop.time()
            while "audit" in one.degraded and loop.time() < began + 2:
                await asyncio.sleep(0.01)
            assert "audit" not in one.degraded and machine.seen == []
        one.journal.log.close()

    with capture_logs():
        run(work())
    assert [one["tool"] for one in records(tmp_path)] == ["start", "audit resumed", "stop"]


def test_a_moderate_read_needs_the_log_too(tmp_path: Path, machine: Machine) -> None:
    _directory(tmp_path / "audit.jsonl")
    reply = call(gateway(tmp_path, machine), "ping_host", {"host": "10.0.0.1"})
    assert reply["error"]["code"] == "audit_unavailable" and machine.seen == []


def test_what_was_refused_stays_refused_without_a_log(tmp_path: Path, machine: Machine) -> None:
    _directory(tmp_path / "audit.jsonl")
    reply = call(gateway(tmp_path, machine), *READ, who=principal())
    assert reply["results"][0]["error"]["code"] == "scope_missing" and machine.seen == []


def test_ten_megabytes_of_arguments_are_a_short_line_per_target(tmp_path: Path, machine: Machine) -> None:
    arguments = {"tool": "get_system_status", "arguments": {f"k{n}": ["x" * 10_000] * 10 for n in range(100)}}
    run(fake_gateway(tmp_path, machine.port, target("web-01")).call(OPERATOR, "explain_access", arguments))
    for line in (tmp_path / "audit.jsonl").read_bytes().splitlines():
        assert len(line) < 16_384


def test_arguments_are_redacted_at_any_depth(tmp_path: Path, machine: Machine) -> None:
    arguments = {"tool": "t", "arguments": {"a": [{"password": "hunter2", "url": "http://u:hunter2@h"}]}}
    run(fake_gateway(tmp_path, machine.port, target("web-01")).call(OPERATOR, "explain_access", arguments))
    assert "hunter2" not in (tmp_path / "audit.jsonl").read_text()
    # Nor does a secret get through that stands where a text is cut.
    long = "x" * 2040 + " ghp_" + "a1B2" * 9
    run(fake_gateway(tmp_path, machine.port, target("web-01")).call(OPERATOR, "explain_access", {"tool": long}))
    assert "ghp_a" not in (tmp_path / "audit.jsonl").read_text()
