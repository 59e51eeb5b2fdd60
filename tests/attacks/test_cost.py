"""To refuse costs little: nobody wears the gateway down with calls that are turned away."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.arena import Arena
from tests.attacks.catalogue import GROUPS, Case, cases, filled
from tests.benchmarks.calls import own_share
from tests.support import principal, run

MOST = 0.050
"""Seconds of CPU for one refusal, on a machine that does `machine()` in `USUAL`."""
USUAL = 0.010

REFUSED = [
    case
    for group in GROUPS
    for case in cases(group)
    if case.how == "call" and case.refused and not case.given.keys() & {"programs", "names", "log", "comes", "first"}
]


def machine() -> float:
    """Seconds of CPU that a fixed piece of work takes here."""
    value = [{"number": number, "text": "x" * 40} for number in range(2_000)]
    return min(_took(lambda: [json.loads(json.dumps(value)) for _ in range(2)]) for _ in range(5))


def _took(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def test_a_refusal_takes_less_than_50_ms_of_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(tmp_path)
    monkeypatch.setenv("PATH", str(arena.bin))

    async def work() -> dict[str, float]:
        took: dict[str, float] = {}
        async with arena.gateway() as gateway:
            for case in REFUSED:
                took[case.id] = min([await one(gateway, case) for _ in range(3)])
        return took

    async def one(gateway: Any, case: Case) -> float:
        given = case.given.get("as", {})
        who = principal(*given.get("scopes", ["admin"]), subject=case.id[:60], targets=given.get("targets"))
        arguments = filled(case.given.get("arguments", {}), arena.names)
        started = time.process_time()
        await gateway.call(who, case.given["tool"], arguments)
        return time.process_time() - started

    took, limit = run(work()), MOST * max(1.0, machine() / USUAL)
    slow = {id: f"{seconds * 1000:.0f} ms" for id, seconds in took.items() if seconds > limit}
    assert len(took) > 300 and not slow, slow


def test_what_is_let_through_costs_less_than_a_millisecond_of_cpu_at_the_median() -> None:
    """All that the gateway does around an operation: the decision, the audit log, the answer."""
    share = run(own_share(400, time.process_time))
    assert share < 1.0 * max(1.0, machine() / USUAL), f"{share:.2f} ms"
