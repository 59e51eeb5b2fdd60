"""Slots are shared out in turn, and nothing of a caller that went away stays behind."""

import asyncio

import pytest

from systemmanager.load import MOST_CALLERS, Recent, Shares
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


def test_principals_without_end_take_no_memory_without_end() -> None:
    recent = Recent(lambda: 0.0)
    for number in range(MOST_CALLERS + 5000):
        recent.add(f"s{number}", Risk.LOW)
    assert len(recent._times) <= MOST_CALLERS
    assert recent.counts(f"s{MOST_CALLERS + 4999}")[Risk.LOW] == 1
