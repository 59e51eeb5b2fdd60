"""A credential that ends while a job goes on in waves: taken back, it begins nothing more; expired, it was enough."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from systemmanager import running
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobStore
from systemmanager.request import Permit
from systemmanager.server.auth.ledger import Ledger
from systemmanager.server.auth.tokens import claims_of
from tests.fakes import codes
from tests.idp import Moment
from tests.serving import ERAS, KEYS, Era, by_token, served, token
from tests.support import UNTAINTED, run
from tests.test_waves import RESTART, Fleet

FAR = 90 * 86_400
BECOMES = {
    "nothing": "ok",
    "revoked": "unauthenticated",
    "expired": "ok",
    "revoked, then expired": "unauthenticated",
}


class Waiting(Fleet):
    """The restart of the first machine waits until it may go on; a machine takes one call at a time."""

    def __init__(self, folder: Path, count: int, **fields: Any) -> None:
        self.go_on, self.begins = asyncio.Event(), asyncio.Event()
        super().__init__(folder, count, policy=UNTAINTED, **fields)

    def _port(self, permit: Permit, port: str) -> Any:
        machine, fleet = super()._port(permit, port), self

        class First:
            probe = machine.probe

            async def run(self, *argv: str, **options: Any) -> Any:
                if argv[1:2] == ("restart",) and permit.target.id == "w-01":
                    fleet.begins.set()
                    await fleet.go_on.wait()
                return await machine.run(*argv, **options)

        return First()


class There:
    """A gateway with jobs behind HTTP, and one token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Moment(time.time())
        self.jobs = Jobs(JobStore(folder / "jobs.sqlite"), folder / "jobs")
        self.jobs.runs = True
        self.fleet = Waiting(folder, 4, jobs=self.jobs)
        self.modes = by_token(self.fleet.gateway)
        self.modes.clock = self.clock
        self.token = token("service:write", "system:read", subject="claude")

    def becomes(self, what: str) -> None:
        if "revoked" in what:
            id = str(claims_of(KEYS, self.token)["jti"])
            Ledger(self.folder / "tokens.sqlite").revoke(id, time.time() + FAR)
            assert self.modes.tokens is not None
            self.modes.tokens._ledger._tried -= 1  # the second for which a ledger is taken as read
        if "expired" in what:
            self.clock.now += 4000

    async def begun(self, url: str, era: Era, **given: Any) -> str:
        """The id of a job whose client is gone."""
        bearing = {"Authorization": f"Bearer {self.token}"}
        async with Client(StreamableHttpTransport(url, headers=bearing), mode=era) as client:
            answer = await client.call_tool("manage_service", {**RESTART, **given, "wait": 0})
            assert answer.structured_content is not None
            return str(answer.structured_content["job"]["id"])

    async def ended(self, id: str) -> dict[str, str]:
        row = await asyncio.wait_for(self.jobs.ended(id), 20)
        assert row is not None
        return codes((await self.jobs.reply_of(row)).as_dict())


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("becomes", BECOMES)
def test_a_token_that_is_revoked_begins_no_wave_more(becomes: str, era: Era, tmp_path: Path) -> None:
    async def work() -> None:
        there, code = There(tmp_path), BECOMES[becomes]
        async with served(there.fleet.gateway, there.modes) as one:
            id = await there.begun(one.url, era, strategy={"max_failures": 9})
            there.becomes(becomes)
            there.fleet.go_on.set()
            assert await there.ended(id) == {"w-01": "ok", "w-02": code, "w-03": code, "w-04": code}
        assert sorted(there.fleet.begun) == ["w-01", "w-02", "w-03", "w-04"][: 4 if code == "ok" else 1]

    run(work())


@pytest.mark.parametrize("becomes", BECOMES)
def test_nor_does_it_where_the_job_waits_for_its_turn(
    becomes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ASKED_AGAIN_AFTER", 0.0)

    async def work() -> None:
        there, code = There(tmp_path), BECOMES[becomes]
        first = there.fleet.gateway.registry.targets["w-01"]
        there.fleet.gateway.runner.slots.of(first).limit = asyncio.Semaphore(1)
        async with served(there.fleet.gateway, there.modes) as one:
            ahead = await there.begun(one.url, "auto", targets=["w-01"], strategy={"health": False})
            await asyncio.wait_for(there.fleet.begins.wait(), 10)
            behind = await there.begun(one.url, "auto", targets=["w-01"], strategy={"health": False})
            there.becomes(becomes)
            there.fleet.go_on.set()
            assert await there.ended(ahead) == {"w-01": "ok"}, "what has begun is not cut off"
            assert await there.ended(behind) == {"w-01": code}

    run(work())
