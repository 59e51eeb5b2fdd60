"""Calls without end from one client: kept waiting, begun and cancelled by the thousand. Nothing of them stays."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from systemmanager.gateway import Gateway
from systemmanager.load import MOST_CALLS
from systemmanager.operation import CATALOGUE, Risk, operation
from systemmanager.ports import Facts, Result
from systemmanager.running import GLOBAL_SLOTS
from tests.attacks.attackers import message
from tests.serving import ERAS, Era, served, token
from tests.support import fake_gateway, operator, records, run, target
from tests.test_canaries import iter_minutes
from tests.test_server_connections import until

CALLS = 2000
AT_ONCE = 50

both_eras = pytest.mark.parametrize("era", ERAS)


class Lingered(Result):
    done: bool


class Lingering:
    """A target that answers nobody until it is opened."""

    def __init__(self) -> None:
        self.begun, self.now, self.gate = 0, 0, asyncio.Event()

    async def wait(self) -> None:
        self.begun += 1
        self.now += 1
        try:
            await self.gate.wait()
        finally:
            self.now -= 1


@pytest.fixture
def linger() -> Iterator[str]:
    """An operation that the catalogue holds for one test; its intent is on the disk before it begins."""

    @operation(scope="system:admin", capability="system:admin", risk=Risk.MODERATE)
    async def linger(facts: Facts) -> Lingered:
        """Wait until the test says so."""
        await facts.wait()  # type: ignore[attr-defined]
        return Lingered(done=True)

    yield "linger"
    del CATALOGUE["linger"]


def gateway_of(tmp_path: Path, port: Lingering) -> Gateway:
    roomy = {"concurrency": 64, "timeout": 30}
    return fake_gateway(tmp_path, lambda *_: port, target("local", constraints=roomy), clock=iter_minutes())


def unsettled(tmp_path: Path) -> dict[str, int]:
    """Calls with more or fewer outcomes than intents."""
    found: Counter[str] = Counter()
    for one in records(tmp_path):
        found[one["call_id"]] += {"intent": 1, "outcome": -1}.get(one["phase"], 0)
    return {id: count for id, count in found.items() if count}


@asynccontextmanager
async def nothing_stays(gateway: Gateway, tmp_path: Path) -> AsyncIterator[None]:
    """What was begun inside has ended when this ends: tasks, slots, shares, files, intents."""
    tasks = len(asyncio.all_tasks())
    yield
    await until(lambda: len(asyncio.all_tasks()) <= tasks, "no task stays")
    assert gateway.runner.slots.running("local") == 0
    assert gateway.runner.shares.free == GLOBAL_SLOTS and not gateway.runner.shares._held
    assert not gateway._in_flight and not gateway.journal._open
    assert not gateway.journal._late and not gateway.journal._owed
    assert unsettled(tmp_path) == {}


def test_calls_that_are_cancelled_at_any_moment_leave_nothing(linger: str, tmp_path: Path) -> None:
    draw = random.Random(7)

    async def work() -> None:
        port = Lingering()
        gateway = gateway_of(tmp_path, port)
        async with nothing_stays(gateway, tmp_path):
            for begin in range(0, CALLS, AT_ONCE):
                crowd = operator(f"crowd-{begin % 7}")
                calls = [asyncio.create_task(gateway.call(crowd, linger, {})) for _ in range(AT_ONCE)]
                await asyncio.sleep(0)  # each has begun
                for call in draw.sample(calls, AT_ONCE):
                    for _ in range(draw.randrange(4)):
                        await asyncio.sleep(draw.choice((0, 0, 0.0005)))
                    call.cancel()
                await asyncio.wait(calls)
                assert all(call.cancelled() for call in calls) and port.now == 0
            assert 0 < port.begun < CALLS
            port.gate.set()
            assert (await gateway.call(operator("crowd-0"), linger, {})).ok

    run(work())
    codes = Counter(one.get("code") for one in records(tmp_path) if one["phase"] != "intent")
    assert set(codes) == {"cancelled", "not_run", "ok"} and codes["ok"] == 1, codes
    assert codes.total() == CALLS + 1


def test_clients_that_hang_up_by_the_thousand_leave_nothing(linger: str, tmp_path: Path) -> None:
    """In the 2026-07-28 era a call is cancelled by closing its connection."""
    draw = random.Random(7)

    async def work() -> None:
        port = Lingering()
        gateway = gateway_of(tmp_path, port)
        async with served(gateway) as there:
            headers, body = message("tools/call", {"name": linger, "arguments": {}}, linger)
            headers |= {"Authorization": f"Bearer {token()}", "Host": "127.0.0.1", "Content-Length": str(len(body))}
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            whole = f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + body
            address = httpx.URL(there.url)

            async def one() -> None:
                _, writer = await asyncio.open_connection(address.host, address.port)
                cut = draw.choice((len(whole), len(whole), draw.randrange(len(whole))))
                writer.write(whole[:cut])
                for _ in range(draw.randrange(3)):
                    await asyncio.sleep(draw.choice((0, 0.001, 0.02)))
                writer.transport.abort()
                await asyncio.sleep(0)

            async with there.client("auto") as client:
                await client.list_tools()
                async with nothing_stays(gateway, tmp_path):
                    for _ in range(0, CALLS, AT_ONCE):
                        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
                    await until(lambda: not gateway._in_flight, "no call is under way")
                assert port.begun > CALLS / 20 and port.now == 0
                port.gate.set()
                assert not (await client.call_tool(linger)).is_error

    run(work())


@both_eras
def test_a_principal_has_so_many_calls_under_way_and_no_more(era: Era, linger: str, tmp_path: Path) -> None:
    async def work() -> list[Any]:
        port = Lingering()
        gateway = gateway_of(tmp_path, port)
        async with served(gateway) as there, there.client(era) as client, there.client(era) as same:
            calls = [
                asyncio.create_task((client, same)[number % 2].call_tool(linger, raise_on_error=False))
                for number in range(MOST_CALLS + 30)
            ]
            await until(lambda: sum(call.done() for call in calls) == 30, "what is too much is refused at once")
            assert port.now == MOST_CALLS
            bearing = {"Authorization": f"Bearer {token(subject='other')}"}
            async with httpx.AsyncClient(base_url=there.origin, headers=bearing) as other:
                headers, body = message("tools/call", {"name": "health_check", "arguments": {}}, "health_check")
                answer = await other.post("/mcp", headers=headers, content=body)
                assert answer.status_code == 200 and '"ok"' in answer.text
            port.gate.set()
            answers = [answer.structured_content for answer in await asyncio.gather(*calls)]
            assert not (await client.call_tool(linger)).is_error
            return answers

    answers = run(work())
    refused = [answer["error"] for answer in answers if not answer["ok"]]
    assert len(refused) == 30 and len(answers) - 30 == MOST_CALLS
    assert {(one["code"], one["retryable"]) for one in refused} == {("busy", True)}
    told = [one for one in records(tmp_path) if one["phase"] == "refused"]
    assert {one["code"] for one in told} == {"busy"} and len(told) <= 30
    assert unsettled(tmp_path) == {}
