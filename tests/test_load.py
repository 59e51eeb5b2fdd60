"""Slots are shared out in turn, and nothing of a caller that went away stays behind."""

import asyncio
from collections import Counter

import pytest

from systemmanager import load
from systemmanager.errors import TooManyCalls
from systemmanager.load import MOST_CALLERS, InFlight, Recent, Shares
from systemmanager.operation import Risk
from tests.support import run


def test_a_crowd_delays_another_principal_by_one_slot() -> None:
    async def work() -> list[str]:
        shares, order, gate = Shares(1), list[str](), asyncio.Event()

        async def call(subject: str) -> None:
            async with shares.hold(subject):
                await gate.wait()
                order.append(subject)

        tasks = [asyncio.create_task(call("crowd")) for _ in range(1000)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(call("other")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        assert shares.free == 1 and not shares._waiting
        return order

    assert run(work()).index("other") <= 2


def test_principals_take_turns_and_each_is_served_in_order() -> None:
    async def work() -> list[str]:
        shares, order = Shares(1), list[str]()

        async def call(name: str) -> None:
            async with shares.hold(name[0]):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(*map(call, ("a0", "a1", "a2", "a3", "b0", "b1", "c0")))
        return order

    assert run(work()) == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]


@pytest.mark.parametrize("slots", [1, 3])
def test_whoever_gives_up_loses_no_slot(slots: int) -> None:
    async def work() -> None:
        shares = Shares(slots)

        async def call(subject: str) -> None:
            async with shares.hold(subject):
                await asyncio.sleep(0)

        for round in range(50):
            tasks = [asyncio.create_task(call(f"s{number % 5}")) for number in range(20)]
            for _ in range(round % 4):
                await asyncio.sleep(0)
            for task in tasks[round % 3 :: 2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert shares.free == slots and not shares._waiting

    run(work())


class Hung:
    """Calls that take a slot and keep it until they are let go."""

    def __init__(self, shares: Shares) -> None:
        self.shares, self.gate = shares, asyncio.Event()
        self.running: Counter[str] = Counter()
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, subject: str, count: int) -> None:
        self.tasks += [asyncio.create_task(self._one(subject)) for _ in range(count)]

    async def _one(self, subject: str) -> None:
        async with self.shares.hold(subject):
            self.running[subject] += 1
            await self.gate.wait()

    async def until(self, **running: int) -> None:
        async with asyncio.timeout(10):
            while self.running != running:
                assert all(self.running[subject] <= count for subject, count in running.items())
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        self.gate.set()
        await asyncio.gather(*self.tasks)


def test_calls_that_hang_do_not_keep_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.02)

    async def work() -> None:
        shares = Shares(2, aside=8)
        hung = Hung(shares)
        hung.begin("crowd", 20)
        await hung.until(crowd=2 + 4)  # half of the room aside
        hung.begin("other", 3)
        await hung.until(crowd=2 + 4, other=3)
        assert shares.aside == 8 - 4 - 3
        await hung.end()
        assert (shares.free, shares.aside) == (2, 8)
        assert not shares._waiting and not shares._held and not shares._gone_aside

    run(work())


def test_who_has_only_just_begun_does_not_go_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.2)

    async def work() -> None:
        hung = Hung(Shares(2, aside=8))
        hung.begin("old", 1)
        await asyncio.sleep(0.1)
        hung.begin("new", 1)
        await hung.until(old=1, new=1)
        hung.begin("waits", 2)
        await hung.until(old=1, new=1, waits=1)
        await hung.until(old=1, new=1, waits=2)
        await hung.end()

    run(work())


def test_no_more_go_aside_than_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.005)

    async def work() -> None:
        hung = Hung(Shares(2, aside=8))
        for number in range(6):
            hung.begin(f"s{number}", 10)
        async with asyncio.timeout(10):
            while hung.running.total() < 10:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert hung.running.total() == 10 and hung.shares.aside == 0
        await hung.end()
        assert (hung.shares.free, hung.shares.aside) == (2, 8)

    run(work())


def test_quick_calls_never_go_aside() -> None:
    async def work() -> None:
        shares, least = Shares(2, aside=8), 8

        async def call(number: int) -> None:
            nonlocal least
            async with shares.hold(f"s{number % 3}"):
                await asyncio.sleep(0)
                least = min(least, shares.aside)

        await asyncio.gather(*map(call, range(500)))
        assert (shares.free, least) == (2, 8)

    run(work())


def test_a_principal_has_so_many_calls_under_way_and_no_more() -> None:
    flight = InFlight(2)
    with flight.one_more("a"), flight.one_more("a"), flight.one_more("b"):
        with pytest.raises(TooManyCalls) as caught, flight.one_more("a"):
            pass
        assert caught.value.as_dict()["code"] == "busy" and caught.value.retryable
        with flight.one_more("b"):
            pass
    assert not flight


def test_principals_without_end_take_no_memory_without_end() -> None:
    recent = Recent(lambda: 0.0)
    for number in range(MOST_CALLERS + 5000):
        recent.add(f"s{number}", Risk.LOW)
    assert len(recent._times) <= MOST_CALLERS
    assert recent.counts(f"s{MOST_CALLERS + 4999}")[Risk.LOW] == 1


def test_who_calls_all_the_time_is_not_forgotten_for_a_crowd() -> None:
    recent = Recent(lambda: 0.0)
    for number in range(MOST_CALLERS * 2):
        recent.add(f"s{number}", Risk.LOW)
        if number % 1000 == 0:
            recent.add("steady", Risk.LOW)
    assert recent.counts("steady")[Risk.LOW] == 20
