"""Waves that go on for long: what has changed meanwhile counts, and a gateway that was stopped loses none of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systemmanager.errors import CredentialExpired, Unauthenticated
from systemmanager.freezing import Freezer, change
from systemmanager.gateway import Gateway
from systemmanager.jobs import taking
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobStore
from systemmanager.policy.grants import GrantRule
from systemmanager.policyfile import BUILTIN
from systemmanager.request import Grant, Permit, Principal
from tests.fakes import codes
from tests.support import OPERATOR, UNTAINTED, records, registry, run, target
from tests.test_waves import RESTART, Fleet, ended, left

RIGHTS = Grant(frozenset({"service:write", "system:read"}))
ANN = Principal("ann@example.com", "person", (RIGHTS,), "test")


def policy(*grants: Grant) -> Any:
    rules = tuple(GrantRule(frozenset({ANN.subject}), frozenset(), frozenset(), one) for one in grants)
    return replace(UNTAINTED, grants=rules, version=str(len(grants)))


def freeze(gateway: Gateway, folder: Path) -> None:
    change(folder, "ann", freeze=True, targets=(), all=True, writes=False, egress=False)


def revoke(gateway: Gateway, folder: Path) -> None:
    gateway.policy = policy()


def narrow(gateway: Gateway, folder: Path) -> None:
    gateway.policy = policy(replace(RIGHTS, targets="w-01"))


def drop(gateway: Gateway, folder: Path) -> None:
    gateway.replace_registry(registry(gateway.registry.targets["w-01"]))


def disarm(gateway: Gateway, folder: Path) -> None:
    others = [one for id, one in gateway.registry.targets.items() if id != "w-02"]
    gateway.replace_registry(registry(target("w-02", capabilities=["readonly"]), *others))


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (freeze, "frozen"),
        (revoke, "target_not_granted"),
        (narrow, "target_not_granted"),
        (drop, "unknown_target"),
        (disarm, "capability_missing"),
    ],
)
def test_a_right_that_is_gone_stops_the_next_wave(
    happens: Callable[[Gateway, Path], None], code: str, tmp_path: Path
) -> None:
    fleet = Fleet(tmp_path, freezer=Freezer(tmp_path), policy=policy(RIGHTS))

    async def progress(done: float, total: int, message: str) -> None:
        if message.startswith("wave 2"):
            happens(fleet.gateway, tmp_path)

    given = {**RESTART, "strategy": {}}
    reply = run(fleet.gateway.call(ANN, "manage_service", given, progress=progress)).as_dict()
    assert fleet.begun == ["w-01"] and codes(reply)["w-01"] == "ok"
    assert codes(reply)["w-02"] == code, codes(reply)
    assert len(left(reply)) == 18 and f"w-02 ({code})" in reply["results"][-1]["error"]["message"]
    assert sorted(ended(fleet)) == sorted(["ok", code, *["not_started"] * 18]), "every intent has its end"


def test_what_was_read_meanwhile_and_the_rate_stop_no_wave(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy=replace(policy(RIGHTS), taint_minutes=10))

    async def progress(done: float, total: int, message: str) -> None:
        if message.startswith("wave 2"):
            fleet.gateway._readers.add(ANN.subject)
            for _ in range(10_000):
                fleet.gateway._recent.add(ANN.subject, fleet_risk())

    reply = run(fleet.gateway.call(ANN, "manage_service", {**RESTART, "strategy": {}}, progress=progress)).as_dict()
    assert reply["ok"] and len(fleet.begun) == 20


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (Unauthenticated("it is revoked"), "unauthenticated"),
        (CredentialExpired("it has expired"), "ok"),
        (Unauthenticated("nobody could say", retryable=True), "ok"),
        (replace(ANN, grants=(Grant(frozenset({"system:read"})),)), "scope_missing"),
        (ANN, "ok"),
    ],
    ids=["revoked", "expired", "outage", "narrowed", "as before"],
)
def test_what_happened_to_the_credential_counts_in_the_next_wave(
    said: Unauthenticated | Principal, code: str, tmp_path: Path
) -> None:
    """Who took it back wants an end; one that was for an hour was enough for what began within it."""
    fleet, asked = Fleet(tmp_path, policy=policy(RIGHTS)), list[int]()

    async def still() -> Principal:
        asked.append(len(fleet.begun))
        if isinstance(said, Principal):
            return said
        raise said

    reply = run(fleet.gateway.call(ANN, "manage_service", {**RESTART, "strategy": {}}, still=still)).as_dict()
    if code == "ok":
        assert reply["ok"] and asked == [1, 2, 10], "before each wave but the first"
        return
    assert fleet.begun == ["w-01"] and asked == [1]
    assert codes(reply)["w-02"] == code and len(left(reply)) == 18
    assert sorted(ended(fleet)) == sorted(["ok", code, *["not_started"] * 18]), "every intent has its end"


def fleet_risk() -> Any:
    from systemmanager.operation import CATALOGUE

    return CATALOGUE["manage_service"].access_for({"action": "restart"}).risk


# --- from one process to the next ------------------------------------------------------------------------------------


class Relay:
    """A fleet under one gateway after the other; a restart on `held` waits until it may go on."""

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.folder, self.count = folder, count
        self.held, self.there = set[str](), asyncio.Event()
        self.fleet = Holding(self, folder, count)
        self.start()

    def start(self) -> None:
        before = self.fleet
        self.jobs = Jobs(JobStore(self.folder / "jobs.sqlite"), self.folder / "jobs")
        self.fleet = Holding(self, self.folder, self.count, jobs=self.jobs, policy=policy(RIGHTS))
        self.fleet.log, self.fleet.bad, self.fleet.ill = before.log, before.bad, before.ill
        self.jobs.runs = True
        self.gateway = self.fleet.gateway
        self.gateway.journal.handed_over = self.jobs.handed_over
        self.gateway.journal.begin()

    async def call(self, who: Principal = ANN, **more: Any) -> str:
        given = {**RESTART, "strategy": more}
        wait = asyncio.create_task(self.gateway.call(who, "manage_service", given))
        await asyncio.wait_for(self.there.wait(), 10)
        wait.cancel()
        await asyncio.wait([wait])
        (row,) = self.jobs.store.all()
        return row.id

    async def killed(self) -> None:
        """The gateway is gone, and what it had begun came to no end that is known. There is a next one."""
        await self.jobs.leave()
        self.held.clear()
        self.start()

    async def taken_up(self, id: str) -> dict[str, Any]:
        await self.jobs.take_up(lambda row, job: taking.take_up(self.gateway, row, job))
        row = await asyncio.wait_for(self.jobs.ended(id), 20)
        assert row is not None
        found = (await self.jobs.reply_of(row)).as_dict()
        return {**found, "state": row.state}


class Holding(Fleet):
    def __init__(self, relay: Relay, folder: Path, count: int, **fields: Any) -> None:
        self.relay = relay
        super().__init__(folder, count, **fields)

    def _port(self, permit: Permit, port: str) -> Any:
        return Held(self.relay, super()._port(permit, port))


class Held:
    def __init__(self, relay: Relay, machine: Any) -> None:
        self.relay, self.machine = relay, machine
        self.probe = machine.probe

    async def run(self, *argv: str, **options: Any) -> Any:
        answer = await self.machine.run(*argv, **options)
        if argv[1:2] == ("restart",) and self.machine.id in self.relay.held:
            self.relay.there.set()
            await asyncio.Event().wait()
        return answer


def scene(folder: Path, work: Callable[[Relay], Awaitable[None]]) -> None:
    async def main() -> None:
        relay = Relay(folder)
        try:
            await work(relay)
        finally:
            await relay.jobs.leave()

    run(main())


def test_a_wave_that_was_cut_off_is_told_and_what_is_left_is_said(tmp_path: Path) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-02")
        id = await relay.call()
        await relay.killed()
        reply = await relay.taken_up(id)
        assert relay.fleet.begun == ["w-01", "w-02"], "nothing runs twice"
        assert codes(reply) == {"w-01": "ok", "w-02": "interrupted", "w-03": "not_started", "w-04": "not_started"}
        assert "w-02 (interrupted)" in reply["results"][-1]["error"]["message"]
        assert reply["state"] == "interrupted"
        (event,) = [one for one in records(tmp_path) if one["tool"] == "interrupted"]
        assert event["arguments"]["targets"] == ["w-02"] and event["arguments"]["job"] == id

    scene(tmp_path, work)


def test_waves_go_on_after_it_where_that_many_may_fail(tmp_path: Path) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-02")
        id = await relay.call(max_failures=1)
        await relay.killed()
        reply = await relay.taken_up(id)
        assert relay.fleet.begun == ["w-01", "w-02", "w-03", "w-04"]
        assert codes(reply) == {"w-01": "ok", "w-02": "interrupted", "w-03": "ok", "w-04": "ok"}

    scene(tmp_path, work)


@pytest.mark.parametrize(("problem", "code"), [(None, "ok"), ("ill", "not_started"), ("bad", "command_failed")])
def test_what_had_failed_before_counts_and_what_had_ended_is_asked_how_it_is(
    tmp_path: Path, problem: str | None, code: str
) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-03")
        id = await relay.call(max_failures=1, batch="1,2,3,4")
        await relay.killed()
        if problem == "bad":
            relay.fleet.bad.add("w-04")
        elif problem == "ill":
            relay.fleet.ill.add("w-01")
        reply = await relay.taken_up(id)
        assert ("w-04" in relay.fleet.begun) is (code != "not_started")
        assert codes(reply)["w-04"] == code

    scene(tmp_path, work)


def test_failures_of_before_and_after_count_together(tmp_path: Path) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-02")
        id = await relay.call(max_failures=1, batch="1,2,3,4")
        await relay.killed()
        relay.fleet.bad.add("w-03")
        reply = await relay.taken_up(id)
        assert codes(reply)["w-03"] == "command_failed" and codes(reply)["w-04"] == "not_started"

    scene(tmp_path, work)


def test_the_rest_is_decided_by_what_is_held_now(tmp_path: Path) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-02")
        id = await relay.call(max_failures=3)
        await relay.killed()
        relay.gateway.policy = policy(replace(RIGHTS, targets="w-01"))
        reply = await relay.taken_up(id)
        assert relay.fleet.begun == ["w-01", "w-02"]
        assert codes(reply)["w-01"] == "ok" and codes(reply)["w-04"] not in ("ok", "interrupted")

    scene(tmp_path, work)


@pytest.mark.parametrize("when", ["before", "later", "never"])
def test_a_token_that_was_revoked_begins_nothing_more_under_the_next_gateway(tmp_path: Path, when: str) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-02")
        id = await relay.call(Principal("bot", "token", (RIGHTS,), "token", credential="t1"), max_failures=3)
        await relay.killed()
        relay.gateway.revoked = lambda token: (
            token == "t1" and when != "never" and (when == "before" or "w-03" in relay.fleet.begun)
        )
        reply = await relay.taken_up(id)
        assert (codes(reply)["w-01"], codes(reply)["w-02"]) == ("ok", "interrupted")
        wanted = {"before": ["unauthenticated"] * 2, "later": ["ok", "unauthenticated"], "never": ["ok", "ok"]}[when]
        assert [codes(reply)["w-03"], codes(reply)["w-04"]] == wanted
        assert relay.fleet.begun == ["w-01", "w-02", "w-03", "w-04"][: 2 + wanted.count("ok")]

    scene(tmp_path, work)


def test_a_job_whose_targets_had_all_ended_is_ended(tmp_path: Path) -> None:
    async def work(relay: Relay) -> None:
        relay.held.add("w-04")
        id = await relay.call(batch="1,2,3,4")
        await relay.killed()
        store = relay.jobs.store
        store.ended_on(id, "w-04", {"target": "w-04", "ok": True, "data": {}, "elapsed_ms": 1})
        reply = await relay.taken_up(id)
        assert reply["state"] == "done" and len(relay.fleet.begun) == 4

    scene(tmp_path, work)


def test_the_operator_holds_everything_and_a_token_what_stands_in_it() -> None:
    from systemmanager.redeciding import still_held

    assert still_held(OPERATOR, BUILTIN) == OPERATOR
    token = replace(ANN, kind="token")
    assert still_held(token, BUILTIN) == token and still_held(ANN, BUILTIN).grants == ()
