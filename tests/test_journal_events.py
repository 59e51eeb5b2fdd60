"""What the journal is told that is no call: credentials that did not count, start and stop."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from systemmanager.audit.log import AuditLog
from systemmanager.journal import Journal
from systemmanager.ports import Output
from tests.serving import ACCEPT, BEARER, INITIALIZE, http
from tests.support import OPERATOR, fake_gateway, records, run, target


def refused(tmp_path: Path) -> list[dict[str, Any]]:
    return [one["arguments"] for one in records(tmp_path) if one["tool"] == "credential refused"]


def ask(tmp_path: Path, headers: list[tuple[str, str]], path: str = "/mcp", times: int = 1) -> list[dict[str, Any]]:
    async def work() -> None:
        async with http(tmp_path) as (_, client):
            for _ in range(times):
                answer = await client.post(path, headers=httpx.Headers([*ACCEPT.items(), *headers]), json=INITIALIZE)
                assert answer.status_code == 401

    run(work())
    return refused(tmp_path)


CREDENTIALS: dict[str, tuple[list[tuple[str, str]], str, str]] = {
    "none": ([], "/mcp", "no credential"),
    "not ours": ([("Authorization", "Basic eDp5")], "/mcp", "an Authorization header that is no bearer token"),
    "no token": ([("Authorization", "Bearer x")], "/mcp", "a token that has a header or a key that is not ours"),
    "two": ([*BEARER.items(), *BEARER.items()], "/mcp", "more than one Authorization header"),
    "in the address": ([], "/mcp?access_token=x", "a token in the address"),
}


@pytest.mark.parametrize(("headers", "path", "why"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_a_credential_that_does_not_count_is_on_record(
    tmp_path: Path, headers: list[tuple[str, str]], path: str, why: str
) -> None:
    assert ask(tmp_path, headers, path) == [{"peer": "127.0.0.1", "why": why}]


def test_a_flood_of_them_is_a_few_records(tmp_path: Path) -> None:
    assert len(ask(tmp_path, [], times=50)) == 5


def journal(tmp_path: Path, clock: Any = time.time) -> Journal:
    return Journal(AuditLog(tmp_path / "audit.jsonl"), clock)


def test_a_flood_ends_in_a_number_a_minute(tmp_path: Path) -> None:
    now = [1000.0]
    one = journal(tmp_path, lambda: now[0])
    for _ in range(100_000):
        one.refused_credential("192.0.2.1", "no credential")
    one.refused_credential("192.0.2.2", "no credential")
    run(one.tend())
    assert len(refused(tmp_path)) == 6
    now[0] += 60
    run(one.tend())
    assert refused(tmp_path)[6:] == [{"peer": "192.0.2.1", "why": "no credential", "times": 99_995}]
    one.log.close()


def test_what_can_t_be_written_is_counted(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    one = journal(tmp_path)
    one.refused_credential("192.0.2.1", "x" * 10_000)
    assert "audit" in one.degraded
    (tmp_path / "audit.jsonl").rmdir()
    run(one.tend(stopping=True))
    assert refused(tmp_path) == [{"peer": "192.0.2.1", "why": "x" * 300, "times": 1}]
    one.log.close()


def test_start_and_stop_are_on_record(tmp_path: Path) -> None:
    async def work() -> None:
        one = journal(tmp_path)
        async with one.open(serves="stdio"):
            one.refused_credential("192.0.2.1", "no credential")
        one.log.close()

    run(work())
    found = records(tmp_path)
    assert [(one["phase"], one["tool"]) for one in found] == [
        ("event", "start"), ("event", "credential refused"), ("event", "stop"),
    ]  # fmt: skip
    assert found[0]["arguments"]["serves"] == "stdio" and found[0]["arguments"]["version"]


def test_calls_refused_by_their_rate_are_soon_one_number(tmp_path: Path) -> None:
    now = [1000.0]
    gateway = fake_gateway(tmp_path, lambda permit, name: None, clock=lambda: now[0])
    gateway.journal.clock = gateway.clock
    gateway.journal.__post_init__()
    replies = [run(gateway.call(OPERATOR, "list_targets", {})).as_dict() for _ in range(200)]
    codes = [reply["results"][0].get("error", {}).get("code") for reply in replies]
    assert codes == [None] * 100 + ["rate_limited"] * 100
    assert len([one for one in records(tmp_path) if one.get("code") == "rate_limited"]) == 20
    now[0] += 61
    run(gateway.journal.tend())
    (told,) = [one for one in records(tmp_path) if one["tool"] == "rate limited"]
    assert told["arguments"] == {"subject": OPERATOR.subject, "times": 80}


def test_an_outcome_that_can_t_be_written_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    class Breaking:
        """A Shell whose effect is the end of the log."""

        async def run(self, *argv: str, **options: Any) -> Output:
            if "restart" in argv:
                path.rename(tmp_path / "kept")
                path.mkdir()
            return Output(argv, 0, "LoadState=loaded\nActiveState=active\nSubState=running\nId=n.service\n", "")

    web = target("web-01", constraints={"sudo_policy": "full"})
    gateway = fake_gateway(tmp_path, lambda permit, name: Breaking(), web, root=True)
    asked = {"target": "web-01", "action": "restart", "service_name": "n"}
    with capture_logs():
        assert run(gateway.call(OPERATOR, "manage_service", asked)).ok
        assert "audit" in gateway.degraded
        path.rmdir()
        (tmp_path / "kept").rename(path)
        run(gateway.journal.tend())
    assert "audit" not in gateway.degraded
    assert [one["phase"] + one["tool"] for one in records(tmp_path)] == [
        "intentmanage_service", "outcomemanage_service", "eventaudit resumed",
    ]  # fmt: skip


def test_a_call_that_ends_before_it_begins_closes_its_intent(tmp_path: Path) -> None:
    async def work() -> None:
        gateway = fake_gateway(
            tmp_path, lambda permit, name: None, target("web-01", constraints={"sudo_policy": "full"})
        )
        gateway.root = True
        asked = {"target": "web-01", "action": "restart", "service_name": "n"}
        task = asyncio.create_task(gateway.call(OPERATOR, "manage_service", asked))
        while not (tmp_path / "audit.jsonl").exists():
            await asyncio.sleep(0)
        task.cancel()  # while the intent is brought to the disk
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert [(one["phase"], one.get("code")) for one in records(tmp_path)] == [("intent", None), ("outcome", "not_run")]
