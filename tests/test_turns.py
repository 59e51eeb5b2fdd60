"""A call that has waited for its turn is decided again: who was let in may have lost the right, or the credential."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from systemmanager import running
from systemmanager.errors import CredentialExpired, Unauthenticated
from systemmanager.freezing import Freezer
from systemmanager.request import Principal
from tests.fakes import Facts, codes, phases
from tests.support import OPERATOR, fake_gateway, principal, run, target
from tests.test_freeze import freezes

READER = principal("readonly", subject="reader")


def ended() -> Principal:
    raise Unauthenticated("the token was revoked")


def expired() -> Principal:
    raise CredentialExpired("it was for an hour")


def narrowed() -> Principal:
    return principal("file:read", subject="reader")


def elsewhere() -> Principal:
    return principal("readonly", subject="reader", targets="tag:web")


STILL: dict[str, tuple[Any, str]] = {
    "as before": (lambda: READER, "ok"),
    "the credential has ended": (ended, "unauthenticated"),
    "the credential has expired": (expired, "unauthenticated"),
    "the scope is taken away": (narrowed, "scope_missing"),
    "the target is taken away": (elsewhere, "target_not_granted"),
    "nobody can lose it": (None, "ok"),
}


class Line:
    """One target with one slot, which the first call holds until it is let go; the others have to wait."""

    def __init__(self, folder: Path) -> None:
        self.done, self.entered, self.free = [0], asyncio.Event(), asyncio.Event()
        line = self

        class Held(Facts):
            async def status(self) -> Any:
                line.entered.set()
                await line.free.wait()
                line.done[0] += 1
                return await super().status()

        one = target("up", "ssh", constraints={"concurrency": 1})
        freezer = Freezer(folder)
        self.gateway = fake_gateway(folder, lambda permit, _: Held("up"), one, freezer=freezer)

    async def behind(self, still: Any, happens: Any = None) -> dict[str, Any]:
        """The answer to a call that has waited for its turn."""
        asked = {"target": "up"}
        first = asyncio.create_task(self.gateway.call(OPERATOR, "get_system_status", asked))
        await self.entered.wait()
        second = asyncio.create_task(self.gateway.call(READER, "get_system_status", asked, still=still))
        while self.gateway.runner.slots.running("up") < 2:
            await asyncio.sleep(0.01)
        since = time.monotonic()
        while time.monotonic() - since < running.ASKED_AGAIN_AFTER:
            await asyncio.sleep(0.01)
        if happens is not None:
            happens()
            assert codes((await second).as_dict()) == {"up": "frozen"}, "it does not wait for its turn to be stopped"
        self.free.set()
        assert codes((await first).as_dict()) == {"up": "ok"}
        return (await second).as_dict()


@pytest.mark.parametrize("name", STILL)
def test_what_is_lost_while_a_call_waits_for_its_turn_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ASKED_AGAIN_AFTER", 0.05)
    says, code = STILL[name]

    async def still() -> Principal:
        now: Principal = says()
        return now

    async def work() -> None:
        line = Line(tmp_path)
        assert codes(await line.behind(still if says else None)) == {"up": code}
        assert line.done == [2 if code == "ok" else 1]

    run(work())
    assert phases(tmp_path)[-1] == ("outcome", "up", code) and phases(tmp_path).count(("intent", "up", None)) == 2


def test_who_waits_for_no_turn_is_not_asked_again(tmp_path: Path) -> None:
    async def still() -> Principal:
        raise AssertionError("asked")

    async def work() -> None:
        line = Line(tmp_path)
        line.free.set()
        done = await line.gateway.call(READER, "get_system_status", {"target": "up"}, still=still)
        assert codes(done.as_dict()) == {"up": "ok"}

    run(work())


def test_a_freeze_stops_what_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "ASKED_AGAIN_AFTER", 0.0)

    async def work() -> None:
        line = Line(tmp_path)

        def freeze_reads_of_all() -> None:
            line.gateway.freezer._runs = {one for one in line.gateway.freezer._runs if one.request.principal is READER}
            freezes(tmp_path)
            line.gateway.freezer.stop()

        assert codes(await line.behind(None, freeze_reads_of_all)) == {"up": "frozen"}
        assert line.done == [1]

    run(work())
