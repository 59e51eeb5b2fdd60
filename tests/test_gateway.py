"""One call from end to end over fake ports: fan-out, deadlines, slots, approvals, cancellation, and one Record each."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from systemmanager import telling
from systemmanager.errors import CommandFailed
from systemmanager.ports import SystemStatus
from systemmanager.request import Permit, Request
from systemmanager.running import GLOBAL_SLOTS
from tests.fakes import PULL, STATUS, Engine, Facts, ask, codes, engines, fleet, phases
from tests.support import OPERATOR, fake_gateway, opened_by, principal, records, registry, run, target


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """What the gateway logs; without this, tracebacks are drawn with colours and locals."""
    with capture_logs() as entries:
        yield entries


def test_partial_failure_is_data(tmp_path: Path) -> None:
    gateway = fleet(tmp_path, "up-1", "down-1", "broken-1", "hung-1", "timeout-1", "cancelled-1", "up-2")
    started = time.monotonic()
    reply = ask(gateway, {"targets": "*"})
    assert codes(reply) == {
        "up-1": "ok", "down-1": "unreachable", "broken-1": "internal_error", "hung-1": "deadline_exceeded",
        "timeout-1": "internal_error", "cancelled-1": "internal_error", "up-2": "ok",
    }  # fmt: skip
    assert reply["ok"] is False and reply["summary"] == {"targets": 7, "succeeded": 2, "failed": 5}
    assert time.monotonic() - started < 5
    assert all(one["elapsed_ms"] < 150 for one in reply["results"] if one["ok"]), "a hung target delays itself alone"
    assert {one["call_id"] for one in records(tmp_path)} == {reply["call_id"]}
    assert len(phases(tmp_path)) == 14


def test_the_text_of_a_defect_stays_inside_and_secrets_are_masked(tmp_path: Path) -> None:
    reply = ask(fleet(tmp_path, "broken", "exit"), {"targets": "*"})
    assert "hunter2" not in str(reply) and "\x1b" not in str(reply)
    assert "hunter2" not in (tmp_path / "audit.jsonl").read_text()
    assert reply["results"][1]["error"]["message"] == r"password=[redacted]\x1b[31m"


BAD_CALLS: dict[str, tuple[str, Any, str]] = {
    "unknown tool": ("get_sytem_status", {}, "unknown_tool"),
    "no tool": ("", {}, "unknown_tool"),
    "hostile tool": ("x\n\x1b[31m" * 1000, {"a": "b"}, "unknown_tool"),
    "unknown target": ("get_system_status", {"target": "wbe-1"}, "unknown_target"),
    "no such default": ("get_system_status", {}, "unknown_target"),
    "newline": ("get_system_status", {"target": "web-1\n"}, "unknown_target"),
    "bad argument": ("get_top_processes", {"limit": "many"}, "invalid_arguments"),
    "injected argument": ("get_system_status", {"principal": "admin"}, "invalid_arguments"),
    "10 MB": ("get_system_status", {"x": "y" * 10_000_000}, "invalid_arguments"),
    "deep": ("get_system_status", {"x": [[]]}, "invalid_arguments"),
    "surrogate": ("get_system_status", {"target": "\ud800"}, "invalid_arguments"),
    "nan": ("get_top_processes", {"limit": float("nan")}, "invalid_arguments"),
}
_deep: list[Any] = []
for _ in range(900):
    _deep = [_deep]
BAD_CALLS["deep"][1]["x"] = _deep


@pytest.mark.parametrize(("tool", "arguments", "code"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_call_at_fault_is_answered_and_audited_once(tmp_path: Path, tool: str, arguments: Any, code: str) -> None:
    reply = ask(fleet(tmp_path, "web-1"), arguments, tool)
    assert reply["error"]["code"] == code and reply["error"]["message"] and "results" not in reply
    (record,) = records(tmp_path)
    assert (record["phase"], record["code"], record["call_id"]) == ("refused", code, reply["call_id"])
    raw = (tmp_path / "audit.jsonl").read_bytes()
    assert raw.count(b"\n") == 1 and len(raw) < 16_384 and b"\x1b" not in raw


# --- Slots -----------------------------------------------------------------------------------------------------------


class Counting:
    """Counts how many run at once, in all and per target, and lets them go on together."""

    def __init__(self, expected: int) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.all_now = self.all_most = 0
        self.expected = expected
        self.full = asyncio.Event()

    def port(self, permit: Permit, name: str) -> Any:
        counting = self

        class One:
            async def status(self) -> SystemStatus:
                id = permit.target.id
                counting.now[id] = counting.now.get(id, 0) + 1
                counting.all_now += 1
                counting.most[id] = max(counting.most.get(id, 0), counting.now[id])
                counting.all_most = max(counting.all_most, counting.all_now)
                if counting.all_now >= counting.expected:
                    counting.full.set()
                await counting.full.wait()
                await asyncio.sleep(0)
                counting.now[id] -= 1
                counting.all_now -= 1
                return STATUS

        return One()


def test_a_target_takes_no_more_calls_at_a_time_than_it_says(tmp_path: Path) -> None:
    async def work() -> Counting:
        counting = Counting(3)
        gateway = fake_gateway(tmp_path, counting.port, target("web", constraints={"concurrency": 3}))
        calls = [gateway.call(OPERATOR, "get_system_status", {"target": "web"}) for _ in range(20)]
        assert all(reply.ok for reply in await asyncio.gather(*calls))
        return counting

    assert run(work()).most == {"web": 3}


def test_the_gateway_takes_no_more_at_a_time_than_it_can(tmp_path: Path) -> None:
    async def work() -> Counting:
        counting = Counting(GLOBAL_SLOTS)
        gateway = fake_gateway(tmp_path, counting.port, *(target(f"web-{number}") for number in range(400)))
        assert (await gateway.call(OPERATOR, "get_system_status", {"targets": "*"})).ok
        return counting

    assert run(work()).all_most == GLOBAL_SLOTS


def test_more_calls_than_may_wait_are_busy(tmp_path: Path) -> None:
    async def work() -> list[str]:
        gateway = fleet(tmp_path, "hung")
        gateway.replace_registry(registry(target("hung", "ssh", constraints={"timeout": 0.3, "concurrency": 1})))
        calls = [gateway.call(OPERATOR, "get_system_status", {"target": "hung"}) for _ in range(15)]
        return [codes(reply.as_dict())["hung"] for reply in await asyncio.gather(*calls)]

    answers = run(work())
    assert answers.count("busy") == 4 and answers.count("deadline_exceeded") == 11


def test_slots_are_free_again_after_every_kind_of_end(tmp_path: Path) -> None:
    async def work() -> None:
        gateway = fleet(tmp_path, "up", "down", "broken", "hung", "cancelled")
        for _ in range(3):
            await gateway.call(OPERATOR, "get_system_status", {"targets": "*"})
        assert all(gateway.runner.slots.running(id) == 0 for id in gateway.registry.targets)
        assert gateway.runner.shares.free == GLOBAL_SLOTS

    run(work())


# --- Rates -----------------------------------------------------------------------------------------------------------


def test_rates_count_calls_per_principal_and_minute(tmp_path: Path) -> None:
    now = [1000.0]
    gateway = fleet(tmp_path, "up-1", "up-2", clock=lambda: now[0])
    agent, other = principal("readonly", subject="agent"), principal("readonly", subject="other")

    async def once(who: Any, arguments: dict[str, Any] | None = None) -> str:
        reply = await gateway.call(who, "get_system_status", arguments or {"target": "up-1"})
        return codes(reply.as_dict())["up-1"]

    async def work() -> None:
        assert [await once(agent, {"targets": "*"}) for _ in range(100)] == ["ok"] * 100
        assert await once(agent) == "rate_limited"
        assert await once(other) == "ok", "another principal has its own hundred"
        now[0] += 30
        assert [await once(agent) for _ in range(120)] == ["rate_limited"] * 120
        now[0] += 30.1
        assert await once(agent) == "ok", "what was turned away does not count"

    run(work())


# --- Progress and cancellation ---------------------------------------------------------------------------------------


def test_progress_is_told_once_per_target(tmp_path: Path) -> None:
    told: list[tuple[float, int, str]] = []

    async def progress(done: float, total: int, id: str) -> None:
        told.append((done, total, id))

    ask(fleet(tmp_path, "up-1", "down-1", "up-2"), {"targets": "*"}, progress=progress)
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert {said for *_, said in told} == {f"{id} answered" for id in ("up-1", "down-1", "up-2")}


@pytest.mark.parametrize("way", ["raises", "hangs"])
def test_who_can_t_be_told_progress_gets_the_answer(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PATIENCE", 0.05)

    async def progress(done: float, total: int, id: str) -> None:
        if way == "raises":
            raise RuntimeError("gone")
        await asyncio.Event().wait()

    assert ask(fleet(tmp_path, "up-1", "up-2", "up-3"), {"targets": "*"}, progress=progress)["ok"]


def test_cancelling_ends_every_operation_and_is_recorded(tmp_path: Path) -> None:
    async def work() -> list[str]:
        ended: list[str] = []
        waiting = asyncio.Event()

        @asynccontextmanager
        async def open(permit: Permit, name: str) -> AsyncIterator[Any]:
            try:
                yield Facts(permit.target.id)
            finally:
                ended.append(permit.target.id)

        gateway = opened_by(open, tmp_path, target("hung-1"), target("hung-2"), target("up"))

        async def progress(done: float, total: int, id: str) -> None:
            waiting.set()

        call = asyncio.create_task(gateway.call(OPERATOR, "get_system_status", {"targets": "*"}, progress=progress))
        await waiting.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert all(gateway.runner.slots.running(id) == 0 for id in gateway.registry.targets)
        return sorted(ended)

    assert run(work()) == ["hung-1", "hung-2", "up"]
    outcomes = {target: code for phase, target, code in phases(tmp_path) if phase == "outcome"}
    assert outcomes == {"up": "ok", "hung-1": "cancelled", "hung-2": "cancelled"}


def test_who_goes_away_before_the_decision_is_recorded(tmp_path: Path) -> None:
    async def work() -> None:
        asked = asyncio.Event()

        async def approve(requests: Sequence[Request]) -> str:
            asked.set()
            await asyncio.Event().wait()
            return ""

        gateway = engines(tmp_path, Engine())
        call = asyncio.create_task(gateway.call(OPERATOR, "pull_docker_image", PULL, approve=approve))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(work())
    assert phases(tmp_path) == [("refused", None, "cancelled")]


def test_what_the_gateway_saw_last_is_judged_and_audited_like_a_look(tmp_path: Path) -> None:
    gateway = fleet(tmp_path, "up-1", "up-2")
    ask(gateway, {"target": "up-1"})
    seen = run(gateway.last_seen(OPERATOR, "up-1")).as_dict()
    assert seen["results"][0]["data"]["data"]["hostname"] == "h"
    refused = run(gateway.last_seen(principal(), "up-1")).as_dict()
    assert codes(refused) == {"up-1": "scope_missing"}
    assert run(gateway.last_seen(OPERATOR, "up-*")).as_dict()["error"]["code"] == "unknown_target"
    wanted = [("intent", "ok"), ("outcome", "ok"), ("intent", "ok"), ("outcome", "ok")]
    found = [(phase, code or "ok") for phase, _, code in phases(tmp_path)]
    assert found == [*wanted, ("refused", "scope_missing"), ("refused", "unknown_target")]


def test_its_own_secrets_leave_nowhere(tmp_path: Path) -> None:
    class Leaking:
        async def status(self) -> SystemStatus:
            raise CommandFailed("said: signing-key-0123456789 and registry-key-0123456789")

    port: Callable[[Permit, str], Any] = lambda permit, name: Leaking()  # noqa: E731
    gateway = fake_gateway(tmp_path, port, target("up"), secrets=frozenset({"signing-key-0123456789"}))
    gateway.replace_registry(registry(target("up"), secrets=frozenset({"registry-key-0123456789"})))
    reply = ask(gateway, {"target": "up"})
    assert reply["results"][0]["error"]["message"] == "said: [redacted] and [redacted]"
    assert "0123456789" not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("get_system_status", {"target": ""}), ("get_system_status", {"targets": []}),
        ("health_check", {"targets": []}), ("get_system_status", {"targets": ["web", ""]}),
        ("list_targets", {"selector": ""}), ("list_targets", {"selector": " "}),
    ],
)  # fmt: skip
def test_who_names_no_target_learns_which_there_are(tmp_path: Path, tool: str, arguments: dict[str, Any]) -> None:
    gateway = fake_gateway(tmp_path, lambda permit, name: None, target("web"), target("local"))
    reply = run(gateway.call(OPERATOR, tool, arguments)).as_dict()
    error = reply.get("error") or reply["results"][0]["error"]
    assert (error["code"], error["message"]) == ("unknown_target", "no target is named")
    assert error["hint"] == "There is: local, web."
